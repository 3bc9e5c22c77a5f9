"""JSON lists -> values with their numbers, one at a time: no more is held than the largest row.

A list is decoded element by element out of a window that slides over the text, by the decoder of `json.loads`; so its
numbers, its NaN, its twice given keys and its words about errors are the same as for a line.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data_formats.delimited import column_rows, is_columns
from data_formats.errors import DataError, RowNumber, TooLargeError

_CHUNK = 1 << 16  # bytes
_SPACE = re.compile(r"[ \t\n\r]*")
_LONGEST_WORD = 16  # characters: what is found so near the end may go on in the next chunk
_CLOSING = {b"[": b"]", b"{": b"}"}
_decode = json.JSONDecoder().raw_decode


def is_lines(file: IO[bytes]) -> bool:
    """Whether a `.json` file is JSON Lines: its first line ends as it begins, and what follows begins a value."""
    opening = closing = b""
    ended = False
    while chunk := file.read(_CHUNK):
        for at, part in enumerate(chunk.removeprefix(codecs.BOM_UTF8).split(b"\n")):
            text = part.strip()
            ended = ended or (at > 0 and bool(opening))
            if text and ended:
                return closing == _CLOSING.get(opening, closing) and text[:1] not in b",]}:"
            if text:
                opening, closing = opening or text[:1], text[-1:]
    return opening not in _CLOSING


class _Window:
    """The part of a text that is being read: `text[at:]` is ahead, `line` is that of `text[0]`."""

    def __init__(self, file: IO[bytes], path: Path, most: int):
        self.file, self.path, self.most = file, path, most
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def line_of(self, at: int) -> int:
        return self.line + self.text.count("\n", 0, at)

    def error(self, problem: str, at: int | None = None) -> DataError:
        return DataError(problem, path=self.path, line=self.line_of(self.at if at is None else at))

    def more(self) -> bool:
        """Take in as much again as is ahead, at least a chunk; False when there is no more.

        Raises:
            TooLargeError: a single value is larger than `most`.
            DataError: not UTF-8.
        """
        ahead = len(self.text) - self.at
        if ahead > self.most:
            raise TooLargeError(self.most, path=self.path, line=self.line_of(self.at))
        if self.ended:
            return False
        raw = self.file.read(max(_CHUNK, ahead))
        try:
            new = self.decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self.line_of(len(self.text)) + error.object.count(b"\n", 0, error.start)
            problem = f"not UTF-8 text (byte {error.object[error.start]:#04x})"
            raise DataError(problem, path=self.path, line=line) from error
        self.line, self.text, self.at = self.line_of(self.at), self.text[self.at :] + new, 0
        self.ended = not raw
        return True

    def peek(self) -> str:
        """The next character that is no space, "" at the end; what was before it is passed."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self) -> Any:
        """The value ahead, which is passed."""
        while True:
            try:
                found, end = _decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - _LONGEST_WORD
                if cut and self.more():
                    continue
                raise self.error(f"not JSON ({self._slip(error)})", error.pos) from error
            except RecursionError as error:
                raise self.error("nested too deeply to be read") from error
            except ValueError as error:  # a number of thousands of digits
                raise self.error(f"not JSON that can be read ({error})") from error
            if len(self.text) - end < _LONGEST_WORD and self.more():
                continue  # a number may go on
            if end - self.at > self.most:
                raise TooLargeError(self.most, path=self.path, line=self.line_of(self.at))
            self.at = end
            return found

    def _slip(self, error: json.JSONDecodeError) -> str:
        if error.pos >= len(self.text):
            return f"{error.msg}: the file ends within a value"
        if self.text[: error.pos].rstrip().endswith(",") and self.text[error.pos] in "]}":
            return f"a comma stands before the '{self.text[error.pos]}' that closes it"
        return error.msg


def json_values(file: IO[bytes], path: Path, most: int) -> Iterator[tuple[int, Any]]:
    """The elements of the list that a file holds, the rows of its table by columns, or its one value.

    Args:
        most: characters that an element may have.

    Raises:
        DataError: it is neither; names the line.
    """
    window = _Window(file, path, most)
    if (start := window.peek()) == "[":
        yield from _elements(window)
    elif start:
        value = window.value()
        yield from column_rows(value) if is_columns(value) else [(RowNumber(1), value)]
    if following := window.peek():
        what = "objects" if start == following == "{" else "values"
        raise window.error(
            f"two JSON {what} stand in a row, of which the second begins here; make one list of them, or JSON Lines (a "
            "name that ends in .jsonl, and each on a line of its own)"
        )


def _elements(window: _Window) -> Iterator[tuple[int, Any]]:
    window.at += 1
    number, following = 0, window.peek()
    while following != "]":
        number += 1
        yield RowNumber(number), window.value()
        following = window.peek()
        if following not in (",", "]"):
            found = f"found '{following}'" if following else "the file ends"
            raise window.error(f"not JSON (after row {number} of the list ',' or ']' must follow, but {found})")
        if following == ",":
            window.at += 1
            if (following := window.peek()) == "]":
                raise window.error(f"not JSON (a comma stands between row {number} and the ']' that ends the list)")
    window.at += 1
