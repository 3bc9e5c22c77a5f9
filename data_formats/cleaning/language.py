"""In which language a record is written, by py3langid (Lui and Baldwin 2012: naive Bayes over n-grams of bytes).

Read are the wanted replies together, of a prompt its own turns, without code, addresses and formulas. What is left with
fewer than `SHORTEST` bytes of letters is nobody's guess, nor is a text of which no language is probable enough (lists,
names, a mixture): they pass and are counted as such.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from align.runtime.packages import require_package
from data_formats.cleaning.steps import Finding
from data_formats.cleaning.texts import prompt_text, wanted_texts
from data_formats.errors import DataError
from data_formats.records import Record

SHORTEST = 30  # bytes of letters: 30 Latin ones, 10 Chinese ones
LONGEST = 20_000  # characters that are read of a text
_NOT_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]{0,500}`|https?://\S{1,2000}+|<[^<>\n]{1,200}>|\$\$?[^$\n]{1,500}\$\$?|\\[a-zA-Z]+",
    re.DOTALL,
)
_CODE_LINE = re.compile(
    r"[;{}]\s*$|^\s*(?:def |class |import |from \S+ import |return\b|#include|//|/\*|\*/|print\(|@\w+|</?\w)"
    r"|^\s*(?:if|for|while|elif|else|try|except|with)\b.*:\s*$|^\s*[\w.\[\]]+\s*[+-]?=\s*\S|\w\(.*\)\s*$",
    re.ASCII,
)


def prose_of(text: str) -> str:
    """A text without fenced and inline code, lines of code, tags, addresses and formulas."""
    lines = _NOT_PROSE.sub(" ", text[:LONGEST]).split("\n")
    return "\n".join(line for line in lines if not _CODE_LINE.search(line[:400]))


def language_shares(text: str) -> dict[str, float]:
    """The probability of each language that py3langid knows (ISO 639-1)."""
    return dict(_identifier().rank(text))


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class Languages:
    """Records that are in another language than those to keep.

    Args:
        keep: ISO 639-1 codes, as py3langid has them: en, zh, de, ….
        min_probability: of the other language, at least; a record that is less surely in it passes.

    Raises:
        MissingPackageError: py3langid is not installed.
        DataError: a code that it does not know.
    """

    name = "languages"

    def __init__(self, keep: Sequence[str], min_probability: float = 0.6):
        require_package("cleaning.languages", "py3langid", "drop the key")
        known = sorted(set(_identifier().labels))
        if unknown := [code for code in keep if code not in known]:
            raise DataError(f"languages.keep: py3langid knows no '{unknown[0]}'; it has {', '.join(known)}")
        self._keep, self._least = tuple(keep), min_probability
        self.looks_for = f"languages other than {', '.join(keep)} (py3langid)"

    def check(self, record: Record) -> Finding | None:
        whole = "\n".join(wanted_texts(record)) or prompt_text(record)
        text = prose_of(whole)
        letters = sum(len(sign.encode("utf-8", "replace")) for sign in text if sign.isalpha())
        if letters < SHORTEST:
            return Finding("note", "passed over: code, or too short to tell", whole)
        shares = language_shares(text)
        best = max(shares, key=shares.__getitem__)
        if best in self._keep:
            return None
        if shares[best] < self._least:
            return Finding("note", "passed over: no language is sure", whole)
        return Finding("drop", f"in {best}", text.strip())
