"""A plain text table (rich would cost a tenth of a second of `align check`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from unicodedata import east_asian_width


def columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns padded to their widest cell, numbers to the right, a rule under the header."""
    body = [list(row) for row in rows]
    text = [[str(cell) for cell in row] for row in [list(header), *body]]
    widths = [max(map(columns, column)) for column in zip(*text, strict=True)]
    right = [bool(body) and all(isinstance(row[index], int | float) for row in body) for index in range(len(header))]

    def line(cells: list[str]) -> str:
        spaces = [" " * (width - columns(cell)) for cell, width in zip(cells, widths, strict=True)]
        padded = [s + c if r else c + s for c, s, r in zip(cells, spaces, right, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(text[0]), "  ".join("-" * width for width in widths), *map(line, text[1:])])
