"""Reading a file into records: choosing the format, counting what is dropped, naming the place of what is malformed.

With `format="auto"` the first row decides: of the formats whose fields it has, the one that needs the most fields wins;
two that need equally many are refused, and the recipe must name one. The order of specificity therefore is, for
comparisons: predictions (6 fields), shp (5), alpacaeval, edited (4), preference, ranking, arena, stack_exchange_paired
(3), all others (2; told apart by their values); for scored replies: shp (5), edited (4), unpaired (3), all others (2);
for demonstrations: messages, sharegpt (1), all others (2); for prompts: self_instruct (2), all others (1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from data_formats import comparisons, demonstrations, documents, files, prompts, scored
from data_formats.errors import DataError, EmptyDatasetError
from data_formats.formats import LEFT_OUT, Dropped, Format, Notes
from data_formats.records import Comparison, Demonstration, Document, Prompt, Record, Scored

FORMATS: tuple[Format, ...] = (
    *demonstrations.FORMATS,
    *comparisons.FORMATS,
    *scored.FORMATS,
    *prompts.FORMATS,
    *documents.FORMATS,
)
# Fields whose meaning would be lost if they were passed over, with the kinds of record for which they matter.
_UNSUPPORTED = {
    "images": ("images", (Demonstration, Comparison, Scored, Prompt)),
    "label": ("unpaired labelled replies", (Demonstration, Comparison)),
    "rejected": ("ranked replies", (Demonstration,)),
}
# Shapes that hold no record of any kind: the fields they have, one they would need, and what to do.
_REFUSED = (
    ({"task_id", "completion"}, "prompt", "completions without their prompts; join them with their problems first"),
    ({"problem", "content"}, "prompt", "rows wrapped in 'content'; take them out and read them as what they are"),
)


@dataclass(slots=True)
class ReadReport:
    """What became of a file.

    Attributes:
        rows: rows looked at (of a StackExchange dump: posts); `rows == used + sum(dropped.values())`.
        records: records made; a row can give several.
        dropped: rows left out, by reason.
        repaired: used rows that were repaired, by kind of repair.
        left_out: parts of used rows that were left out (pairs of equal score, replies without text), by reason.
        used: rows that gave at least one record.
        drawn: records taken into a mixture, None where there is none.
    """

    path: str
    format: str
    rows: int = 0
    records: int = 0
    dropped: dict[str, int] = field(default_factory=Counter)
    repaired: dict[str, int] = field(default_factory=Counter)
    left_out: dict[str, int] = field(default_factory=Counter)
    used: int = 0
    drawn: int | None = None

    def describe(self) -> str:
        """One line for a person."""
        line = f"{self.path} ({self.format}): {self.rows} rows, {self.records} kept"
        for word in ("dropped", "repaired", "left_out"):
            if counts := getattr(self, word):
                reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
                line += f"; {word.replace('_', ' ')}: {reasons}"
        return line if self.drawn is None else f"{line}; {self.drawn} taken into the mixture"


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The records of a file in its order, and the report."""

    records: list[Any]
    report: ReadReport


def format_names(kind: type[Record]) -> list[str]:
    """The formats known for a kind of record, as a recipe names them."""
    return [known.name for known in FORMATS if known.kind is kind]


def _keys(row: Any) -> str:
    return ", ".join(map(str, row)) if isinstance(row, dict) else f"none (a {type(row).__name__})"


def detect(row: Any, kind: type[Record]) -> Format:
    """The most specific format whose fields the row has.

    Raises:
        DataError: none, or two that are equally specific.
    """
    keys, kind_name = _keys(row), kind.__name__.lower()
    for has, lacks, what in _REFUSED if isinstance(row, dict) else ():
        if has <= row.keys() and lacks not in row:
            raise DataError(f"these are {what}; keys seen: {keys}")
    fitting = [known for known in FORMATS if known.kind is kind and known.matches(row)]
    if not fitting:
        known = ", ".join(format_names(kind))
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


def _parse(row: Any, chosen: Format, notes: Notes) -> tuple[Any, ...]:
    """The records of one row, which must have the format's fields."""
    if not (chosen.needs <= row.keys() if isinstance(row, dict) else isinstance(row, list) and not chosen.needs):
        needs = ", ".join(sorted(chosen.needs)) or "a list"
        raise DataError(f"the row does not have the shape of format {chosen.name} ({needs}); keys seen: {_keys(row)}")
    for name, (meaning, kinds) in _UNSUPPORTED.items() if isinstance(row, dict) else ():
        if chosen.kind in kinds and name not in chosen.needs and row.get(name) not in (None, "", [], {}, "[]"):
            raise DataError(f"{meaning} are not supported by this reader", field=name)
    if chosen.fits is not Format.fits and not chosen.fits(row):
        raise DataError(f"the values are not those of format {chosen.name}; keys seen: {_keys(row)}")
    made = chosen.parse(row, notes)
    return made if isinstance(made, tuple) else (made,)


def _open(path: Path, kind: type[Record], name: str, split: str | None) -> tuple[Format | None, Iterator[Any]]:
    """The format (None: decided by the first row) and the raw rows."""
    chosen = None if name == "auto" else _named(name, kind)
    if files.ending(path) not in files.TEXT_ENDINGS:
        if split not in (None, "none"):
            raise DataError(f"only text files are split, not this one; remove split {split!r}", path=path)
        return chosen, files.raw_rows(path)
    if kind is not Document:
        raise DataError(f"plain text holds documents, not {kind.__name__.lower()}s", path=path)
    text = files.read_text(path)
    return documents.FORMATS[0], _located(path, None, lambda: documents.text_rows(text, split or "none"))


def _located(path: Path, line: int | None, action: Callable[[], Any]) -> Any:
    """`action()`, with file and line put into its DataError."""
    try:
        return action()
    except DataError as error:
        raise DataError(error.problem, path=path, line=line, field=error.field) from None
    except RecursionError:
        raise DataError("nested too deeply to be read", path=path, line=line) from None


class Stream:
    """The records of a file, read as they are asked for; `report` is complete when they are exhausted.

    Held in memory: one row of JSON Lines (plain, .gz, .zst), one batch of rows of Parquet; but the whole of a `.json`
    list, of a text file and of the posts of a dump, since these cannot be read in part. Iterating again reads again.

    Args, errors: see `read`; an unknown format name is an error at once, everything else when it is met.
    """

    def __init__(
        self,
        path: str | Path,
        kind: type[Record],
        *,
        format: str = "auto",
        limit: int | None = None,
        category: str | None = None,
        split: str | None = None,
    ):
        self.path, self.kind, self.format, self.limit = Path(path), kind, format, limit
        self.category, self.split = category, split
        self.report = ReadReport(str(path), format)
        _open(self.path, kind, format, split) if files.ending(self.path) not in files.TEXT_ENDINGS else None

    def __iter__(self) -> Iterator[Any]:
        report = self.report = ReadReport(str(self.path), self.format)
        chosen, rows = _open(self.path, self.kind, self.format, self.split)
        first = next(rows, None)
        if first is None:
            raise EmptyDatasetError("the file holds no rows", path=self.path)
        for line, row in chain([first], rows):
            if isinstance(row, dict) and row.keys() == {"left_out"} and files.ending(self.path) == ".xml":
                report.rows += 1
                report.dropped[row["left_out"]] += 1
                continue
            if chosen is None:
                chosen = _located(self.path, line, partial(detect, row, self.kind))
            report.format = chosen.name
            for record in self._records(line, row, chosen, report):
                report.records += 1
                yield record
                if report.records == self.limit:
                    return

    def _records(self, line: int, row: Any, chosen: Format, report: ReadReport) -> Iterator[Any]:
        posts = row["posts"] if files.ending(self.path) == ".xml" else 1
        notes = Notes()
        report.rows += posts
        try:
            made = _located(self.path, line, partial(_parse, row, chosen, notes))
        except Dropped as reason:
            report.dropped[str(reason)] += posts
            return
        report.used += posts
        for note, count in notes.items():
            if note in LEFT_OUT:
                report.left_out[note] += count
            else:
                report.repaired[note] += 1
        for name in ("left_out", "repaired"):
            setattr(report, name, +getattr(report, name))
        named = self.category is not None and self.kind is not Document
        yield from (replace(record, category=self.category) for record in made) if named else made


stream = Stream


def read(
    path: str | Path,
    kind: type[Record],
    *,
    format: str = "auto",
    limit: int | None = None,
    category: str | None = None,
    split: str | None = None,
) -> ReadResult:
    """Read a file into records of one kind.

    Args:
        path: see `files` for the endings.
        kind: Demonstration, Comparison, Scored, Prompt or Document.
        format: one of `format_names(kind)`, or "auto".
        limit: stop after this many records.
        category: set this category on every record (not on documents, which have none).
        split: how a text file is cut into documents, see `documents`.

    Raises:
        MissingFileError: there is no such file.
        DataError: an unknown or ambiguous shape, or a malformed row; names file, line and field.
        EmptyDatasetError: the file holds no row at all.
    """
    lazily = Stream(path, kind, format=format, limit=limit, category=category, split=split)
    records = list(lazily)
    return ReadResult(records, lazily.report)
