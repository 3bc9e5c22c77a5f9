"""Which files are meant, and which kind of record a file holds, when nobody says so."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from align.runtime.errors import MissingFileError
from align.runtime.paths import typed_path
from data_formats import DataError, EmptyDatasetError, HubDataset, stream
from data_formats.detection import FORMATS
from data_formats.files import COMPRESSED, ROW_ENDINGS, TEXT_ENDINGS, ending, raw_rows
from data_formats.formats import any_values
from data_formats.hub import as_source
from data_formats.records import Comparison, Demonstration, Document, Prompt, Record, Scored

# The richest reading first: a row with judged replies is that before it is a prompt.
KINDS: dict[str, type[Record]] = {
    "scored": Scored,
    "comparison": Comparison,
    "demonstration": Demonstration,
    "prompt": Prompt,
    "document": Document,
}
ENDINGS = (*ROW_ENDINGS, *TEXT_ENDINGS)
LOOKED_AT = 100  # rows in which the fields of a richer kind are looked for
SHOWN_FILES = 10


def files_in(paths: list[Path | str]) -> tuple[list[Path | str], list[str]]:
    """The files and hub datasets that are named, and the files with a known ending in the folders that are, sorted; and
    a sentence for each folder in which others were passed over, or which has none.

    Raises:
        MissingFileError: nothing there.
        PathError: a path that nothing can have.
    """
    found: list[Path | str] = []
    notes = []
    for path in paths:
        if isinstance(path, Path):
            path = typed_path(path)
            if not path.exists():
                raise MissingFileError(f"{path}: no such file or folder; check the path")
        if isinstance(path, str) or not path.is_dir():
            found.append(path)
            continue
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file.relative_to(path))]
        known = [file for file in files if ending(file) in ENDINGS]
        passed = [str(file.relative_to(path)) for file in files if ending(file) not in ENDINGS]
        endings = f"({', '.join(ENDINGS)}, each also with {' or '.join(COMPRESSED)})"
        if not known:
            there = f": {_some(passed)}" if passed else ""
            notes.append(f"{path}: no file in this folder has a known ending {endings}{there}")
        elif passed:
            number = f"{len(passed)} file{'' if len(passed) == 1 else 's'}"
            notes.append(f"{path}: {number} without a known ending passed over: {_some(passed)}")
        found += known
    return found, notes


def _hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_FILES} more" if len(names) > SHOWN_FILES else ""
    return ", ".join(names[:SHOWN_FILES]) + more


def kind_of(path: Path | str, options: dict[str, Any]) -> type[Record]:
    """The richest kind as which the first rows of a file can be read.

    Raises:
        DataError: as none; with what each reading found wrong, the same words once. Or the rows have the fields of a
            richer kind too, which cannot be read: nobody wants half of a file without having said so.
    """
    failed: dict[str, DataError] = {}
    for name, kind in KINDS.items():
        error = _problem(path, kind, options)
        if error is None:
            if options.get("format", "auto") == "auto":
                _require_richest(path, name, failed, options)
            return kind
        failed[name] = error
    _, first = next(_raw(path, options), (0, None))
    likely = {name: error for name, error in failed.items() if _has_fields(first, KINDS[name])}
    likely = {name: error for name, error in likely.items() if _fits(first, KINDS[name])} or likely
    found: dict[str, list[str]] = {}
    for name, error in (likely or failed).items():
        found.setdefault(error.placed, []).append(name)
    if len(found) == 1:
        raise next(iter((likely or failed).values()))
    words = "; ".join(f"as {' or '.join(names)}: {problem}" for problem, names in found.items())
    raise DataError(f"cannot be read as any kind of record: {words}", path=path)


def _problem(path: Path | str, kind: type[Record], options: dict[str, Any]) -> DataError | None:
    """Why a file gives no record of a kind; None where it gives one."""
    rows = stream(path, kind, **options)
    try:
        if next(iter(rows), None) is not None:
            return None
    except EmptyDatasetError:
        raise
    except DataError as error:
        return error
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(rows.report.dropped.items()))
    return DataError(f"no row gives a record ({reasons})", path=path)


def _require_richest(path: Path | str, name: str, failed: dict[str, DataError], options: dict[str, Any]) -> None:
    """Raise where rows that can be read as `name` have the fields of one of the richer kinds that failed."""
    for line, row in islice(_raw(path, options), LOOKED_AT) if failed else ():
        for richer, error in sorted(failed.items(), key=lambda one: not _fits(row, KINDS[one[0]])):
            if fields := _further_fields(row, KINDS[richer], KINDS[name]):
                raise DataError(
                    f"{error.problem}; the rows have the fields of kind '{richer}' ({', '.join(sorted(fields))}): mend "
                    f"them, or say --kind {name} to read them as that alone",
                    path=path,
                    line=line if error.line is None else error.line,
                    field=error.field,
                )


def _has_fields(row: Any, kind: type[Record]) -> bool:
    return isinstance(row, dict) and any(one.kind is kind and one.needs and one.needs <= row.keys() for one in FORMATS)


def _fits(row: Any, kind: type[Record]) -> bool:
    """Whether a row has the shape of a format of this kind, its values too."""
    return any(one.kind is kind and one.needs and one.matches(row) for one in FORMATS)


def _raw(path: Path | str, options: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    source = as_source(path)
    if isinstance(source, HubDataset):
        return source.rows()
    return raw_rows(source, options["max_row_mb"] << 20) if ending(source) not in TEXT_ENDINGS else iter(())


def _further_fields(row: Any, richer: type[Record], poorer: type[Record]) -> frozenset[str]:
    """The fields of the first format of `richer` that the row has, less those that a format of `poorer` reads.

    A single further field is too little where the format is told by its values.
    """
    there = [one for one in FORMATS if isinstance(row, dict) and one.needs and one.needs <= row.keys()]
    read = frozenset[str]().union(*(known.needs for known in there if known.kind is poorer))
    for known in there:
        further = known.needs - read
        if known.kind is richer and len(further) >= (1 if known.fits is any_values else 2):
            return further
    return frozenset()
