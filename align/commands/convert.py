"""`align data convert` and `split`: any files that can be read -> JSON Lines in our own rows, cleaned if asked.

Rows are read, cleaned and written one by one; what is held does not grow with the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from align.commands.kinds import KINDS, files_in, kind_of
from align.data.cleaning import cleaning_table
from align.runtime.errors import MissingFileError
from align.runtime.files import atomic_file, storage_errors
from align.runtime.paths import typed_path
from align.runtime.terminal import say
from data_formats import DataError, EmptyDatasetError, stream, write_jsonl
from data_formats.cleaning import Cleaner
from data_formats.records import Record
from data_formats.splitting import heldout_marks
from data_formats.writing import jsonl_line


def convert(
    paths: Sequence[Path | str], out: Path, kind: str | None, options: dict[str, Any], cleaner: Cleaner | None
) -> None:
    """Write what `paths` hold to `out`, row by row, one file after the other.

    Raises:
        DataError: `out` is one of `paths`, these hold different kinds of records, or a row is malformed; nothing is
            written then.
        MissingFileError: there is no file.
        EmptyDatasetError: no record is left.
    """
    out = typed_path(out)
    rows = RowsOfFiles(paths, kind, options, cleaner)
    if out.exists() and any(isinstance(path, Path) and out.samefile(path) for path in rows.paths):
        raise DataError("the output is the input; name another file", path=out)
    write_jsonl(out, rows)
    rows.say()
    say(f"{out}: {rows.number} records")


class RowsOfFiles:
    """The records of files, cleaned if asked, and what was done with them.

    Attributes:
        paths: the files; `kind` of records they hold.
        number: of records that were given.

    Args, errors: see `convert`.
    """

    def __init__(self, paths: Sequence[Path | str], kind: str | None, options: dict[str, Any], cleaner: Cleaner | None):
        self.paths, notes = files_in(list(paths))
        if not self.paths:
            raise MissingFileError("; ".join(notes))
        for note in notes:
            say(note)
        kinds = {path: KINDS[kind] if kind else kind_of(path, options) for path in self.paths}
        first, self.kind = next(iter(kinds.items()))
        other = next((path for path, one in kinds.items() if one is not self.kind), None)
        if other is not None:
            names = f"{kinds[other].__name__.lower()}s, {first} {self.kind.__name__.lower()}s"
            raise DataError(f"holds {names}; take one kind at a time, or say --kind", path=other)
        self.cleaner, self.number = cleaner, 0
        self.files = [stream(path, self.kind, **options) for path in self.paths]

    def __iter__(self) -> Iterator[Record]:
        for file in self.files:
            for record in self.cleaner.clean(file) if self.cleaner is not None else file:
                self.number += 1
                yield record
        if not self.number:
            raise EmptyDatasetError("no record is left, so nothing is written")

    def say(self) -> None:
        """The reports."""
        for file in self.files:
            say(file.report.describe())
        if self.cleaner is not None:
            say(cleaning_table(self.cleaner.report))


def split(
    path: Path | str, out_dir: Path, share: float, kind: str | None, options: dict[str, Any], cleaner: Cleaner | None
) -> None:
    """Write `train.jsonl` and `heldout.jsonl`: a prompt is on one side only, told by its hash.

    Raises:
        EmptyDatasetError: one side would be empty.
    """
    sides = [typed_path(out_dir) / f"{name}.jsonl" for name in ("train", "heldout")]
    rows = RowsOfFiles([path], kind, options, cleaner)
    counts = [0, 0]
    with storage_errors(out_dir), ExitStack() as stack:
        files = [stack.enter_context(atomic_file(side)) for side in sides]
        for record, held in heldout_marks(rows, share):
            counts[held] += 1
            files[held].write(jsonl_line(record) + "\n")
        if not all(counts):
            there = f"{counts[0]} and {counts[1]} records"
            raise EmptyDatasetError(f"a share of {share} leaves one side empty ({there})", path=path)
    rows.say()
    for side, count in zip(sides, counts, strict=True):
        say(f"{side}: {count} records")
