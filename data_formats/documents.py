"""Formats of documents: rows with `text`, and plain text files.

A text file is one document; `split: lines` makes a document of every line, `split: paragraphs` of every stretch of
lines between empty ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_formats.errors import DataError
from data_formats.formats import Dropped, Format, Notes, source_of, text_field
from data_formats.records import Document

SPLITS = ("none", "lines", "paragraphs")


def parse_text(row: dict[str, Any], notes: Notes) -> Document:
    """`text`, kept as it is."""
    text = text_field(row, "text", notes)
    if not text.strip():
        raise Dropped("empty text")
    return Document(text, source_of(row))


def _paragraphs(lines: list[str]) -> Iterator[tuple[int, str]]:
    start, gathered = 0, []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            start = start if gathered else number
            gathered.append(line.rstrip("\r"))
        elif gathered:
            yield start, "\n".join(gathered)
            gathered = []


def text_rows(text: str, split: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The documents of a text file as rows with `text`, each with the line it starts on.

    Under `lines` every line is a row, the empty ones too (they are then dropped, and counted).

    Raises:
        DataError: an unknown split.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; a text file has {', '.join(SPLITS)}", field="split")
    lines = text.removesuffix("\n").split("\n") if text else []
    if split == "paragraphs":
        pieces: Iterator[tuple[int, str]] = _paragraphs(lines)
    elif split == "lines":
        pieces = ((number, line.rstrip("\r")) for number, line in enumerate(lines, 1))
    else:
        pieces = iter([(1, text.strip("\n"))] if text else [])
    return ((number, {"text": piece}) for number, piece in pieces)


FORMATS = (Format("text", Document, frozenset({"text"}), parse_text),)
