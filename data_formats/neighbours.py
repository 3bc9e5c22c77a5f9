"""Rows that stand one below the other and belong together: the replies to one prompt, the messages of one tree.

Files with a reply a row (HelpSteer 2, BeaverTails) or a message a row (OASST) say nothing row by row that could be
compared. A format with a `group` gets the rows of one value together, as long as they follow
each other, which they do in these files; a file is still read as a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, TypeVar

from data_formats.errors import DataError
from data_formats.fields import Fields

Made = TypeVar("Made")


class Neighbours(list[Any]):
    """Raw rows that belong together, with their lines."""

    def __init__(self, numbered: Iterable[tuple[int, Any]]):
        numbered = list(numbered)
        super().__init__(Fields(row) if isinstance(row, dict) else row for _, row in numbered)
        self.lines = [line for line, _ in numbered]

    def each(self, read: Callable[[Any], Made]) -> list[Made]:
        """`read` of every row; its DataError names the line of the row."""
        made = []
        for line, row in zip(self.lines, self, strict=True):
            try:
                made.append(read(row))
            except DataError as error:
                raise DataError(error.problem, line=line, field=error.field) from None
        return made


def neighbours(rows: Iterable[tuple[int, Any]], value: Callable[[Any], Any]) -> Iterator[tuple[int, Neighbours]]:
    """Rows of equal `value` that follow each other, with the line of the first."""
    for _, some in groupby(rows, key=lambda numbered: value(numbered[1])):
        group = Neighbours(some)
        yield group.lines[0], group


def by(field: str) -> Callable[[Any], Any]:
    """What a row has under `field`, for `neighbours`."""
    return lambda row: row.get(field) if isinstance(row, dict) else None
