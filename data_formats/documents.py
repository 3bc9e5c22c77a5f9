"""Formats of documents: rows with `text`, and plain text files.

A text file is one document; `split: lines` makes a document of every line, `split: paragraphs` of every stretch of
lines between empty ones. Lines and paragraphs are read one at a time.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_formats.errors import MOST, DataError, TooLargeError
from data_formats.formats import Dropped, Format, Notes, source_of, text_field
from data_formats.records import Document

SPLITS = ("none", "lines", "paragraphs")


def parse_text(row: dict[str, Any], notes: Notes) -> Document:
    """`text`, kept as it is."""
    text = text_field(row, "text", notes)
    if not text.strip():
        raise Dropped("empty text")
    return Document(text, source_of(row))


class _Text:
    """Lines put together, of which a document may have no more than `most` characters."""

    def __init__(self, path: Path | None, most: int):
        self.path, self.most, self.start, self.size, self.text = path, most, 0, 0, io.StringIO(newline="")

    def add(self, number: int, line: str) -> None:
        self.start, self.size = self.start or number, self.size + len(line)
        if self.size > self.most:
            raise TooLargeError(self.most, path=self.path, line=self.start)
        self.text.write(line)

    def taken(self) -> Iterator[tuple[int, str]]:
        """What was put together with the line it starts on, if anything was; then it is empty again."""
        if self.start:
            yield self.start, self.text.getvalue()
        self.start, self.size, self.text = 0, 0, io.StringIO(newline="")


def _whole(lines: Iterable[str], text: _Text) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        text.add(number, line)
    yield from text.taken()


def _paragraphs(lines: Iterable[str], text: _Text) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            text.add(number, line.removesuffix("\n").rstrip("\r") + "\n")
        else:
            yield from text.taken()
    yield from text.taken()


def text_rows(
    lines: Iterable[str], split: str, path: Path | None = None, most: int = MOST
) -> Iterator[tuple[int, dict[str, str]]]:
    """The documents of a text file as rows with `text`, each with the line it starts on.

    Under `lines` every line is a row, the empty ones too (they are then dropped, and counted).

    Args:
        lines: with their ends.
        path: the file, for errors.
        most: characters that a document may have.

    Raises:
        DataError: an unknown split.
        TooLargeError: a document has more than `most` characters (when it is met).
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; a text file has {', '.join(SPLITS)}", field="split")
    if split == "lines":
        pieces = ((number, line.removesuffix("\n").rstrip("\r")) for number, line in enumerate(lines, 1))
    else:
        put_together = _paragraphs if split == "paragraphs" else _whole
        pieces = ((start, text.strip("\n")) for start, text in put_together(lines, _Text(path, most)))
    return ((number, {"text": piece}) for number, piece in pieces)


FORMATS = (Format("text", Document, frozenset({"text"}), parse_text),)
