"""`align data convert` and `split`: any file that can be read -> JSON Lines in our own rows, cleaned if asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from align.commands.kinds import KINDS, kind_of
from align.data.cleaning import cleaning_table
from align.runtime.paths import typed_path
from align.runtime.terminal import say
from data_formats import DataError, EmptyDatasetError, stream, write_jsonl
from data_formats.cleaning import Cleaner
from data_formats.records import Record
from data_formats.splitting import split_heldout


def _records(
    path: Path | str, kind: str | None, options: dict[str, Any], cleaner: Cleaner | None
) -> tuple[Any, Iterable[Record]]:
    rows = stream(path, KINDS[kind] if kind else kind_of(path, options), **options)
    return rows, cleaner.clean(rows) if cleaner is not None else rows


def convert(path: Path | str, out: Path, kind: str | None, options: dict[str, Any], cleaner: Cleaner | None) -> None:
    """Write what `path` holds to `out`, row by row.

    Raises:
        DataError: `out` is `path`, or a row is malformed; nothing is written then.
        EmptyDatasetError: no record is left.
    """
    out = typed_path(out)
    if isinstance(path, Path) and out.exists() and out.samefile(path):
        raise DataError("the output is the input; name another file", path=out)
    rows, kept = _records(path, kind, options, cleaner)
    counted = _CountedRecords(kept)
    write_jsonl(out, counted)
    _say(rows, cleaner)
    say(f"{out}: {counted.number} records")


class _CountedRecords:
    """Passes records on and counts them."""

    def __init__(self, records: Iterable[Record]):
        self.records, self.number = records, 0

    def __iter__(self) -> Iterator[Record]:
        for record in self.records:
            self.number += 1
            yield record
        if not self.number:
            raise EmptyDatasetError("no record is left, so nothing is written")


def split(
    path: Path | str, out_dir: Path, share: float, kind: str | None, options: dict[str, Any], cleaner: Cleaner | None
) -> None:
    """Write `train.jsonl` and `heldout.jsonl`: a prompt is on one side only, told by its hash.

    Raises:
        EmptyDatasetError: one side would be empty.
    """
    out_dir = typed_path(out_dir)
    rows, kept = _records(path, kind, options, cleaner)
    train, heldout = split_heldout(list(kept), share)
    _say(rows, cleaner)
    if not train or not heldout:
        sides = f"{len(train)} and {len(heldout)} records"
        raise EmptyDatasetError(f"a share of {share} leaves one side empty ({sides})", path=path)
    for name, records in (("train", train), ("heldout", heldout)):
        write_jsonl(out_dir / f"{name}.jsonl", records)
        say(f"{out_dir / name}.jsonl: {len(records)} records")


def _say(rows: Any, cleaner: Cleaner | None) -> None:
    say(rows.report.describe())
    if cleaner is not None:
        say(cleaning_table(cleaner.report))
