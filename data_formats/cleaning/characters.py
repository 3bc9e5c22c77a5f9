"""Characters that have no place in a training text: NUL, halves of surrogate pairs, U+FFFD, invisible ones.

They are looked for in every string of a record, its tool calls, category and source included.
"""

from __future__ import annotations

import re
from typing import Literal

from data_formats.cleaning.steps import Finding
from data_formats.cleaning.texts import map_strings, strings
from data_formats.records import Record

_NUL = re.compile("\x00")
_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = re.compile("\ufffd")
# Zero-width space, word joiner, byte order mark, bidirectional marks. The joiners U+200C and U+200D are letters' and
# emoji's own business (Persian, Hindi, families) and stay.
_INVISIBLE = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")


def _around(text: str, found: re.Match[str]) -> str:
    return text[max(0, found.start() - 20) : found.end() + 20]


def _search(record: Record, pattern: re.Pattern[str]) -> str | None:
    """What stands around the first match in the record."""
    for text in strings(record):
        if found := pattern.search(text):
            return _around(text, found)
    return None


class NulBytes:
    """NUL, which no text needs and at which C strings and many databases end; "strip" takes it out."""

    name = "nul_bytes"
    looks_for = "the character NUL"

    def __init__(self, action: Literal["drop", "strip"] = "strip"):
        self._action = action

    def check(self, record: Record) -> Finding | None:
        excerpt = _search(record, _NUL)
        if excerpt is None:
            return None
        if self._action == "drop":
            return Finding("drop", "NUL", excerpt)
        return Finding("repair", "NUL removed", excerpt, map_strings(record, lambda text: text.replace("\x00", "")))


def _paired(text: str) -> str:
    """Two halves that belong together become their character, a lone one U+FFFD."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class LoneSurrogates:
    """Halves of surrogate pairs, which cannot be written as UTF-8; "replace" makes a lone one U+FFFD."""

    name = "lone_surrogates"
    looks_for = "halves of surrogate pairs"

    def __init__(self, action: Literal["drop", "replace"] = "replace"):
        self._action = action

    def check(self, record: Record) -> Finding | None:
        excerpt = _search(record, _SURROGATE)
        if excerpt is None:
            return None
        if self._action == "drop":
            return Finding("drop", "surrogate", excerpt)
        return Finding("repair", "surrogate replaced", excerpt, map_strings(record, _paired))


class ReplacementCharacters:
    """U+FFFD: text that was cut inside a character or read with the wrong encoding, and cannot be mended."""

    name = "replacement_characters"
    looks_for = "U+FFFD, the trace of broken text"

    def __init__(self, action: Literal["drop", "keep"] = "drop"):
        self._action: Literal["drop", "note"] = "drop" if action == "drop" else "note"

    def check(self, record: Record) -> Finding | None:
        excerpt = _search(record, _REPLACEMENT)
        return None if excerpt is None else Finding(self._action, "U+FFFD", excerpt)


class InvisibleCharacters:
    """Zero-width and bidirectional marks and byte order marks, which tokenise to noise; "strip" takes them out."""

    name = "invisible_characters"
    looks_for = "zero-width, bidirectional and byte order marks"

    def __init__(self, action: Literal["drop", "strip"] = "strip"):
        self._action = action

    def check(self, record: Record) -> Finding | None:
        excerpt = _search(record, _INVISIBLE)
        if excerpt is None:
            return None
        if self._action == "drop":
            return Finding("drop", "invisible character", excerpt)
        repaired = map_strings(record, lambda text: _INVISIBLE.sub("", text))
        return Finding("repair", "invisible characters removed", excerpt, repaired)
