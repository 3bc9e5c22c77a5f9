"""Tables -> raw rows: CSV, TSV, and a JSON object of columns.

The first line of a CSV or TSV file names the columns. A cell is text; one that holds the JSON of a list or an object is
that (also as Python writes it, which pandas does), wherever a text is not what the column is for (`TEXTS`): turns,
tools and scores are read, a prompt that happens to be "[1, 2]" stays what somebody wrote. Numbers stay text, which
every reader of numbers takes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from data_formats.errors import DataError, RowNumber
from data_formats.literals import value_in

ENDINGS = (".csv", ".tsv")
LONGEST_CELL = 16 * 2**20  # characters; an open quotation mark would otherwise swallow the rest of the file
TEXTS = frozenset(
    {"prompt", "instruction", "input", "output", "question", "answer", "query", "response", "problem", "solution"}
    | {"text", "completion", "context", "system", "system_prompt", "content", "reference", "ground_truth"}
    | {"std_answer", "canonical_solution", "chosen", "rejected", "title", "edited", "comment"}
)
_TURN_KEYS = ({"role", "content"}, {"from", "value"})


def delimited_rows(lines: Iterable[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV (also with semicolons) or TSV file with the line on which each starts; blank lines are none.

    Raises:
        DataError: no header or one with a name twice, a row that is longer or shorter, wrong quotation, a huge cell.
    """
    before = csv.field_size_limit(LONGEST_CELL)  # of the process; 131072 is too little for an article
    rest = iter(lines)
    first = next(rest, "")
    reader = csv.reader(chain([first], rest), delimiter=_delimiter(first, path), strict=True)
    header: list[str] = []
    start = 1
    try:
        for cells in reader:
            if not header:
                header = _header(cells, path)
            elif cells:
                if len(cells) != len(header):
                    problem = (
                        f"{len(cells)} cells where the header names {len(header)}; look for a missing quotation mark"
                    )
                    raise DataError(problem, path=path, line=start)
                yield start, {name: _cell(name, text) for name, text in zip(header, cells, strict=True)}
            start = reader.line_num + 1
    except csv.Error as error:
        problem = f"not a table that can be read ({error}); a cell with quotation marks is quoted and doubles them"
        raise DataError(problem, path=path, line=start) from error
    finally:
        csv.field_size_limit(before)


def _delimiter(header: str, path: Path) -> str:
    """A tab in a .tsv file, else a comma; or what spreadsheets of other countries write, when no comma is there."""
    if ".tsv" in [suffix.lower() for suffix in path.suffixes]:
        return "\t"
    return next((sign for sign in (",", ";", "\t") if sign in header), ",")


def _header(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"the header names {', '.join(map(repr, twice))} more than once", path=path, line=1)
    if not any(names):
        raise DataError("the first line names no columns; write a header", path=path, line=1)
    return names


def _cell(name: str, text: str) -> Any:
    if text[:1] not in ("[", "{"):
        return text
    value = value_in(text)
    if not isinstance(value, list | dict):
        return text
    if name in TEXTS and not _is_turns(value):
        return text
    return value


def _is_turns(value: Any) -> bool:
    turns = value if isinstance(value, list) else [value]
    return bool(turns) and all(
        isinstance(turn, dict) and any(keys <= turn.keys() for keys in _TURN_KEYS) for turn in turns
    )


def is_columns(value: Any) -> bool:
    """Whether a JSON object is a table by columns ({"prompt": ["a", "b"], "answer": ["x", "y"]}), not one row.

    Its values are lists of one length; a conversation as the only row is a list of turns, which are objects.
    """
    if not isinstance(value, dict) or not value or not all(isinstance(column, list) for column in value.values()):
        return False
    lengths = {len(column) for column in value.values()}
    texts = [name for name in TEXTS & value.keys() if all(isinstance(cell, str) for cell in value[name])]
    return len(lengths) == 1 and 0 not in lengths and bool(texts)


def column_rows(columns: dict[str, list[Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table by columns, see `is_columns`."""
    for number, cells in enumerate(zip(*columns.values(), strict=True), start=1):
        yield RowNumber(number), dict(zip(columns, cells, strict=True))
