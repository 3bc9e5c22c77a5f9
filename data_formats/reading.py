"""Reading a file or hub dataset into records: counting what is dropped, naming the place of what is malformed.

The format is chosen by the first row unless it is named, see `detection`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from data_formats import documents, files
from data_formats.columns import further_columns, with_all_columns
from data_formats.detection import detect, format_names, named, parse, refuse_unread
from data_formats.errors import MEBIBYTE, MOST, DataError, EmptyDatasetError
from data_formats.exports import LeftOut, plain_rows
from data_formats.fields import Fields, PassedOver
from data_formats.files import Lines
from data_formats.formats import LEFT_OUT, Dropped, Format, Notes, encodable
from data_formats.hub import HubDataset, as_source
from data_formats.neighbours import Neighbours, neighbours
from data_formats.padding import without_padding
from data_formats.prompts import reference_text
from data_formats.records import Comparison, Document, Prompt, Record, Scored
from data_formats.report import ReadReport, ReadResult

MOST_KEYS = 1000  # that are counted one by one; rows of a hostile file may have new ones each
PADDING = "a column's nulls removed from calls and tools"  # a note


def _open(
    source: Path | HubDataset | Lines, kind: type[Record], name: str, split: str | None, most: int
) -> tuple[Format | None, Iterator[Any]]:
    """The format (None: decided by the first row) and the raw rows."""
    chosen = None if name == "auto" else named(name, kind)
    if isinstance(source, HubDataset | Lines) or files.ending(source) not in files.TEXT_ENDINGS:
        if split not in (None, "none"):
            raise DataError(f"only text files are split, not this one; remove split {split!r}", path=str(source))
        rows = files.raw_rows(source, most) if isinstance(source, Path) else source.rows()
        return chosen, plain_rows(rows, str(source), annotated=kind not in (Prompt, Document))
    if kind is not Document:
        raise DataError(f"plain text holds documents, not {kind.__name__.lower()}s", path=source)
    lines = files.text_lines(source, most)
    return documents.FORMATS[0], _located(
        source, None, lambda: documents.text_rows(lines, split or "none", source, most)
    )


def _located(source: Path | HubDataset | Lines, line: int | None, action: Callable[[], Any]) -> Any:
    """`action()`, with file and line put into its DataError."""
    try:
        return action()
    except DataError as error:
        at = line if error.line is None else error.line
        raise DataError(error.problem, path=str(source), line=at, field=error.field) from None
    except RecursionError:
        raise DataError("nested too deeply to be read", path=str(source), line=line) from None


class Stream:
    """The records of a file or hub dataset, read as they are asked for; `report` is complete when they are exhausted.

    Held in memory: one row of JSON Lines or of a `.json` list (plain, .gz, .zst), one document of a text file, one
    batch of rows of Parquet (compressed as a whole, it is first unpacked into a temporary file), what `hub` says of a
    dataset; but all posts of a dump, since an answer may stand anywhere in it. Iterating again reads again.

    Args, errors: see `read`; an unknown format name is an error at once, everything else when it is met.
    """

    def __init__(
        self,
        source: str | Path | HubDataset | Lines,
        kind: type[Record],
        *,
        format: str = "auto",
        limit: int | None = None,
        category: str | None = None,
        split: str | None = None,
        max_row_mb: float = MOST / MEBIBYTE,
    ):
        self.source, self.kind, self.format, self.limit = as_source(source), kind, format, limit
        self.category, self.split, self.most = category, split, int(max_row_mb * MEBIBYTE)
        self.report = ReadReport(str(source), format)
        if format != "auto":
            named(format, kind)

    @cached_property
    def _is_dump(self) -> bool:
        return isinstance(self.source, Path) and files.ending(self.source) == ".xml"

    @cached_property
    def _is_columnar(self) -> bool:
        return isinstance(self.source, HubDataset) or (
            isinstance(self.source, Path) and files.ending(self.source) == ".parquet"
        )

    def __iter__(self) -> Iterator[Any]:
        return (record for _, _, _, record in self._read())

    def placed(self) -> Iterator[tuple[int, dict[str, Any], Any]]:
        """Each record with the number of its row and the row's further fields, `reference` among them, which reward
        functions get; of rows that are read together the number of the first, and no fields."""
        for line, row, chosen, record in self._read():
            columns: dict[str, Any] = {}
            if isinstance(row, dict):
                reference = reference_text(row.get("reference"), "reference", Notes()) or None
                columns = further_columns(row, chosen.needs) | {"reference": reference}
            yield line, columns, record

    def _read(self) -> Iterator[tuple[int, Any, Format, Any]]:
        report = self.report = ReadReport(str(self.source), self.format)
        chosen, rows = _open(self.source, self.kind, self.format, self.split, self.most)
        first = next(rows, None)
        if first is None:
            raise EmptyDatasetError(
                f"the {'dataset' if isinstance(self.source, HubDataset) else 'file'} holds no rows",
                path=str(self.source),
            )
        rows = self._kept(chain([first], rows), report)
        first = next(rows, None)
        if first is None:
            return
        chosen = chosen or _located(self.source, first[0], partial(detect, first[1], self.kind))
        report.format, rows = chosen.name, chain([first], rows)
        for line, row in neighbours(rows, chosen.group) if chosen.group else rows:
            for record in self._records(line, row, chosen, report):
                report.records += 1
                yield line, row, chosen, record
                if report.records == self.limit:
                    return

    def _kept(self, rows: Iterator[tuple[int, Any]], report: ReadReport) -> Iterator[tuple[int, Any]]:
        """The rows without those of which nothing is read, which are counted."""
        for line, row in rows:
            reason = row if isinstance(row, LeftOut) else None
            if self._is_dump and row.keys() == {"left_out"}:
                reason = row["left_out"]
            if reason is None:
                yield line, row
            else:
                report.rows += 1
                report.dropped[str(reason)] += 1

    def _records(self, line: int, row: Any, chosen: Format, report: ReadReport) -> Iterator[Any]:
        notes = Notes()
        held = row["posts"] if self._is_dump else len(row) if isinstance(row, Neighbours) else 1
        report.rows += held
        try:
            row = _located(self.source, line, partial(self._cleared, row, notes))
            made = _located(self.source, line, partial(records_of, row, chosen, notes))
        except Dropped as reason:
            report.dropped[str(reason)] += held
            return
        report.used += held
        for note, count in (+notes).items():
            if isinstance(note, PassedOver):
                known = note in report.passed_over or len(report.passed_over) < MOST_KEYS
                report.passed_over[str(note) if known else "further fields"] += 1
            elif note in LEFT_OUT:
                report.left_out[note] += count
            else:
                report.repaired[note] += 1
        if self.category is not None and self.kind is not Document:
            made = tuple(replace(record, category=self.category) for record in made)
        yield from made

    def _cleared(self, row: Any, notes: Notes) -> Any:
        """A row that knows what is asked of it, its texts fit to be encoded, without a column's nulls in its calls."""
        if isinstance(row, Neighbours):
            return Neighbours(zip(row.lines, [self._cleared(one, notes) for one in row], strict=True))
        whole = without_padding(row) if self._is_columnar else row
        if whole is not row:
            notes[PADDING] = 1
        whole = encodable(whole, notes)
        return Fields(whole) if isinstance(whole, dict) else whole


stream = Stream


def records_of(row: Any, chosen: Format, notes: Notes) -> tuple[Any, ...]:
    """The records of a row (`Fields`, several of them, or a list), every one of whose keys is read, refused or counted.

    Raises:
        DataError: it is malformed, or has a field of known meaning that the format does not read; names the field.
        Dropped: it is of no use.
    """
    made = parse(row, chosen, notes)
    if isinstance(row, Neighbours):
        row.each(partial(refuse_unread, chosen=chosen))
        row.each(partial(Fields.pass_over, notes=notes))
    if not isinstance(row, Fields):
        return made
    refuse_unread(row, chosen)
    if chosen.kind is Prompt:
        columns = further_columns(row, chosen.needs)
        made = tuple(replace(record, columns=columns) for record in made)
    row.pass_over(notes)
    return made


def preference_kind(
    source: str | Path | HubDataset, format: str = "auto", max_row_mb: float = MOST / MEBIBYTE
) -> type[Record]:
    """Scored where the format of these comparisons is one of scored replies (named, or of the first row), else
    Comparison.

    Raises:
        DataError: an unknown format, or no format of comparisons has the first row's shape.
    """
    source = as_source(source)
    chosen, rows = _open(source, Comparison, format, None, int(max_row_mb * MEBIBYTE))
    for line, row in rows if chosen is None else ():
        if isinstance(row, LeftOut) or (isinstance(row, dict) and row.keys() == {"left_out"}):  # it has no shape
            continue
        chosen = _located(source, line, partial(detect, row, Comparison))
        break
    return Scored if chosen is not None and chosen.name in format_names(Scored) else Comparison


def read(
    source: str | Path | HubDataset,
    kind: type[Record],
    *,
    format: str = "auto",
    limit: int | None = None,
    category: str | None = None,
    split: str | None = None,
    max_row_mb: float = MOST / MEBIBYTE,
) -> ReadResult:
    """Read a file or a hub dataset into records of one kind.

    Args:
        source: a file, see `files` for the endings; or a `HubDataset`, for which "hub:org/name" is short.
        kind: Demonstration, Comparison, Scored, Prompt or Document. Prompts have the same columns, see `columns`.
        format: one of `format_names(kind)`, or "auto".
        limit: stop after this many records.
        category: set this category on every record (not on documents, which have none).
        split: how a text file is cut into documents, see `documents`.
        max_row_mb: MiB that a row of a file may have (a line, an element of a list, a document of a text file).

    Raises:
        MissingFileError: there is no such file or dataset.
        DataError: an unknown or ambiguous shape, or a malformed row; names file, line and field.
        EmptyDatasetError: it holds no row at all.
    """
    lazily = Stream(source, kind, format=format, limit=limit, category=category, split=split, max_row_mb=max_row_mb)
    records = list(lazily)
    return ReadResult(with_all_columns(records) if kind is Prompt else records, lazily.report)
