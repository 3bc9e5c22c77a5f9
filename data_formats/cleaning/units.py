"""Words, for counting and for n-grams, in languages with and without spaces between them."""

from __future__ import annotations

import re

from data_formats.cleaning.texts import folded

# Scripts that are written without spaces: kana, Bopomofo, Han and its extensions, compatibility forms.
UNSPACED = "\u3040-\u30ff\u3100-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_UNIT = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+(?:['’][^\W_{UNSPACED}]+)*")
_UNSPACED_LETTER = re.compile(f"[{UNSPACED}]")


def units(text: str) -> list[str]:
    """Words in lower case without punctuation; a Chinese or Japanese character is a word by itself."""
    return _UNIT.findall(folded(text))


def mostly_unspaced(words: list[str]) -> bool:
    """Whether most units are Chinese or Japanese characters."""
    return 2 * sum(1 for word in words if len(word) == 1 and _UNSPACED_LETTER.match(word)) > len(words)
