"""Formats of documents: rows with `text`, and plain text files.

A text file is one document, except a .txt file whose median non-empty line has at least 500 characters: such a file
holds one article a line (a wiki dump). `format: lines` or `format: whole` in the recipe decides it by hand.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from data_formats.formats import Dropped, Format, Notes, source_of, text_field
from data_formats.records import Document

ARTICLE_LENGTH = 500


def parse_text(row: dict[str, Any], notes: Notes) -> Document:
    """`text`, kept as it is."""
    text = text_field(row, "text", notes)
    if not text.strip():
        raise Dropped("empty text")
    return Document(text, source_of(row))


def one_document_a_line(lines: list[str]) -> bool:
    """Whether a text file holds one article a line."""
    lengths = [len(line) for line in lines if line.strip()]
    return bool(lengths) and median(lengths) >= ARTICLE_LENGTH


FORMATS = (Format("text", Document, frozenset({"text"}), parse_text),)
