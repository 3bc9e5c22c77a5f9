"""Reading a file into records: choosing the format, counting what is dropped, naming the place of what is malformed.

With `format="auto"` the first row decides: of the formats whose fields it has, the one that needs the most fields wins;
two that need equally many are refused, and the recipe must name one. The order of specificity therefore is, for
comparisons: alpacaeval (4 fields), preference, ranking, stack_exchange_paired (3), hh, conversation_pair, messages_pair
(2; told apart by their values); for demonstrations: alpaca (2), messages, sharegpt (1); prompts and documents need one
field each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from data_formats import comparisons, demonstrations, documents, files, prompts
from data_formats.errors import DataError, EmptyDatasetError
from data_formats.formats import Dropped, Format, Notes
from data_formats.records import Comparison, Demonstration, Document, Prompt, Record

FORMATS: tuple[Format, ...] = (
    *demonstrations.FORMATS,
    *comparisons.FORMATS,
    *prompts.FORMATS,
    *documents.FORMATS,
)
_TEXT_FORMATS = ("lines", "whole")
# Fields whose meaning would be lost if they were passed over, with the kinds of record for which they matter.
_UNSUPPORTED = {
    "tools": ("tool definitions", (Demonstration, Comparison, Prompt)),
    "functions": ("tool definitions", (Demonstration, Comparison, Prompt)),
    "images": ("images", (Demonstration, Comparison, Prompt)),
    "instances": ("nested instances", (Demonstration, Prompt)),
    "label": ("unpaired labelled replies", (Demonstration, Comparison)),
}


@dataclass(frozen=True, slots=True)
class ReadReport:
    """What became of a file.

    Attributes:
        rows: rows looked at; `rows == records + sum(dropped.values())`.
        dropped: rows left out, by reason.
        repaired: kept rows that were repaired, by kind of repair.
    """

    path: str
    format: str
    rows: int
    records: int
    dropped: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """One line for a person."""
        line = f"{self.path} ({self.format}): {self.rows} rows, {self.records} kept"
        for word, counts in (("dropped", self.dropped), ("repaired", self.repaired)):
            if counts:
                line += f"; {word}: " + ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
        return line


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The records of a file in its order, and the report."""

    records: list[Any]
    report: ReadReport


def format_names(kind: type[Record]) -> list[str]:
    """The formats known for a kind of record, as a recipe names them."""
    names = [known.name for known in FORMATS if known.kind is kind]
    return [*names, *_TEXT_FORMATS] if kind is Document else names


def _keys(row: Any) -> str:
    return ", ".join(map(str, row)) if isinstance(row, dict) else f"none (a {type(row).__name__})"


def detect(row: Any, kind: type[Record]) -> Format:
    """The most specific format whose fields the row has.

    Raises:
        DataError: none, or two that are equally specific.
    """
    fitting = [known for known in FORMATS if known.kind is kind and known.matches(row)]
    keys = _keys(row)
    if not fitting:
        known = ", ".join(format_names(kind))
        kind_name = kind.__name__.lower()
        raise DataError(f"no {kind_name} format has this shape; keys seen: {keys}; known formats: {known}")
    most = max(len(candidate.needs) for candidate in fitting)
    best = [candidate for candidate in fitting if len(candidate.needs) == most]
    if len(best) > 1:
        names = " or ".join(candidate.name for candidate in best)
        raise DataError(f"the row could be {names}; say which with 'format'; keys seen: {keys}")
    return best[0]


def _named(name: str, kind: type[Record]) -> Format:
    for known in FORMATS:
        if known.kind is kind and known.name == name:
            return known
    names = ", ".join(["auto", *format_names(kind)])
    raise DataError(f"unknown {kind.__name__.lower()} format {name!r}; known are {names}", field="format")


def _refuse_unsupported(row: Any, kind: type[Record]) -> None:
    if not isinstance(row, dict):
        return
    for name, (meaning, kinds) in _UNSUPPORTED.items():
        if kind in kinds and row.get(name) not in (None, "", [], {}, "[]"):
            raise DataError(f"{meaning} are not supported by this reader", field=name)


def _text_rows(path: Path, name: str) -> tuple[str, Iterator[tuple[int, Any]]]:
    """A plain text file as rows with `text`, and how it was cut."""
    text = files.read_text(path)
    lines = text.split("\n")
    if name == "auto":
        name = "lines" if files.ending(path) == ".txt" and documents.one_document_a_line(lines) else "whole"
    if name == "whole":
        return name, iter([(1, {"text": text.strip("\n")})] if text else [])
    return name, ((number, {"text": line.rstrip("\r")}) for number, line in enumerate(lines, 1) if line.strip())


def _parse(row: Any, chosen: Format, notes: Notes) -> Record:
    """One record; the row must have the format's fields."""
    if not (chosen.needs <= row.keys() if isinstance(row, dict) else isinstance(row, list) and not chosen.needs):
        needs = ", ".join(sorted(chosen.needs)) or "a list"
        raise DataError(f"the row does not have the shape of format {chosen.name} ({needs}); keys seen: {_keys(row)}")
    _refuse_unsupported(row, chosen.kind)
    return chosen.parse(row, notes)


def _open(path: Path, kind: type[Record], name: str) -> tuple[str, Format | None, Iterator[tuple[int, Any]]]:
    """The format's name, the format (None: decided by the first row), and the raw rows."""
    if files.ending(path) not in files.TEXT_ENDINGS:
        return name, None if name == "auto" else _named(name, kind), files.raw_rows(path)
    if kind is not Document:
        raise DataError(f"plain text holds documents, not {kind.__name__.lower()}s", path=path)
    if name not in ("auto", *_TEXT_FORMATS):
        raise DataError(f"a text file has the formats auto, {', '.join(_TEXT_FORMATS)}, not {name!r}", path=path)
    name, rows = _text_rows(path, name)
    return name, documents.FORMATS[0], rows


def _located(path: Path, line: int, action: Callable[[], Any]) -> Any:
    """`action()`, with file and line put into its DataError."""
    try:
        return action()
    except DataError as error:
        raise DataError(error.problem, path=path, line=line, field=error.field) from None


def read(
    path: str | Path, kind: type[Record], *, format: str = "auto", limit: int | None = None, category: str | None = None
) -> ReadResult:
    """Read a file into records of one kind.

    Args:
        path: see `files` for the endings.
        kind: Demonstration, Comparison, Prompt or Document.
        format: one of `format_names(kind)`, or "auto".
        limit: stop after this many records.
        category: set this category on every record (not on documents, which have none).

    Raises:
        MissingFileError: there is no such file.
        DataError: an unknown or ambiguous shape, or a malformed row; names file, line and field.
        EmptyDatasetError: the file holds no row at all.
    """
    path = Path(path)
    name, chosen, rows = _open(path, kind, format)
    first = next(rows, None)
    if first is None:
        raise EmptyDatasetError("the file holds no rows", path=path)
    records: list[Any] = []
    dropped, repaired, seen = Counter[str](), Notes(), 0
    if chosen is None:
        chosen = _located(path, first[0], lambda: detect(first[1], kind))
    for line, row in chain([first], rows):
        seen += 1
        notes = Notes()
        try:
            records.append(_located(path, line, partial(_parse, row, chosen, notes)))
        except Dropped as reason:
            dropped[str(reason)] += 1
            continue
        repaired.update(notes.keys())
        if len(records) == limit:
            break
    if category is not None and kind is not Document:
        records = [replace(record, category=category) for record in records]
    name = chosen.name if name == "auto" else name
    return ReadResult(records, ReadReport(str(path), name, seen, len(records), dict(dropped), dict(repaired)))
