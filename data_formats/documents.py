"""Formats of documents: rows with `text`, and plain text files.

A text file is one document; `split: lines` makes a document of every line, `split: paragraphs` of every stretch of
lines between empty ones. Lines and paragraphs are read one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_formats.errors import MOST, DataError, TooLargeError
from data_formats.formats import Dropped, Format, Notes, source_of, text_field
from data_formats.records import Document

Lines = tuple[int, list[str]]
SPLITS = ("none", "lines", "paragraphs")


def parse_text(row: dict[str, Any], notes: Notes) -> Document:
    """`text`, kept as it is."""
    text = text_field(row, "text", notes)
    if not text.strip():
        raise Dropped("empty text")
    return Document(text, source_of(row))


def _gathered(lines: Iterable[str], ends: Callable[[str], bool], path: Path | None, most: int) -> Iterator[Lines]:
    """Runs of lines, of which one that `ends` closes the run and belongs to none.

    Raises:
        TooLargeError: a run has more than `most` characters.
    """
    start, size, run = 0, 0, list[str]()
    for number, line in enumerate(lines, 1):
        if ends(line):
            if run:
                yield start, run
            size, run = 0, []
            continue
        start, size = start if run else number, size + len(line)
        if size > most:
            raise TooLargeError(most, path=path, line=start)
        run.append(line)
    if run:
        yield start, run


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
    elif split == "paragraphs":
        runs = _gathered(lines, lambda line: not line.strip(), path, most)
        pieces = ((start, "\n".join(line.removesuffix("\n").rstrip("\r") for line in run)) for start, run in runs)
    else:
        pieces = ((start, "".join(run).strip("\n")) for start, run in _gathered(lines, lambda line: False, path, most))
    return ((number, {"text": piece}) for number, piece in pieces)


FORMATS = (Format("text", Document, frozenset({"text"}), parse_text),)
