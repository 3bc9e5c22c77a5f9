"""Texts that repeat themselves, by the rules of Gopher (Rae et al. 2021, table A1), which Qwen's and Llama 3's
n-gram repetition filters follow too.

Departures: a Chinese or Japanese character is a word, and in texts made mostly of them an n-gram has twice as many
(a Chinese word has about two characters); a repeated n-gram counts from its second occurrence on, as repeated lines
do (Gopher's text leaves open whether the first one counts); the n-gram rules pass over texts of fewer than `min_words`
words, where any phrase is a large share; lines of marks alone, such as code fences, are no lines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from data_formats.cleaning.steps import Finding
from data_formats.cleaning.texts import wanted_texts
from data_formats.cleaning.units import mostly_unspaced, units
from data_formats.records import Record

_WORD = re.compile(r"\w")
TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def repeated_share(parts: Sequence[str], *, characters: bool = False) -> float:
    """The share of parts (or of their characters) that an earlier part already said."""
    seen: set[str] = set()
    repeated = total = 0
    for part in parts:
        size = len(part) if characters else 1
        repeated, total = repeated + (size if part in seen else 0), total + size
        seen.add(part)
    return repeated / total if total else 0.0


def _covered(words: Sequence[str], starts: Sequence[int], n: int) -> float:
    """The share of the words' characters inside the n-grams that begin at `starts` (ascending), each counted once."""
    if not starts:
        return 0.0
    covered, end = 0, 0
    for start in starts:
        covered += sum(map(len, words[max(start, end) : start + n]))
        end = start + n
    total = sum(map(len, words))
    return covered / total if total else 0.0


def repeats(words: Sequence[str], n: int, starts: Iterable[int] | None = None) -> list[list[int]]:
    """Where each n-gram that occurs more than once begins, in the order of the first occurrences.

    Args:
        starts: where one may begin (ascending), None: anywhere. Those of a shorter n are enough: what occurs twice
            begins with what occurs twice.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    last = len(words) - n
    for at in range(last + 1) if starts is None else starts:
        if at <= last:
            groups.setdefault(tuple(words[at : at + n]), []).append(at)
    return [group for group in groups.values() if len(group) > 1]


def top_ngram(words: Sequence[str], n: int, groups: Sequence[list[int]]) -> tuple[float, str]:
    """The share of the characters inside the most frequent of the n-grams that `repeats` found, and that n-gram."""
    top = max(groups, key=len, default=[])
    return _covered(words, top, n), " ".join(words[top[0] : top[0] + n]) if top else ""


def duplicate_ngrams(words: Sequence[str], n: int, groups: Sequence[list[int]]) -> tuple[float, str]:
    """The share of the characters inside n-grams that occurred before, and the first of these n-grams."""
    starts = sorted(at for group in groups for at in group[1:])
    return _covered(words, starts, n), " ".join(words[starts[0] : starts[0] + n]) if starts else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """Upper limits of repetition in the wanted replies and in documents; defaults are Gopher's. None: no limit.

    Attributes:
        lines, paragraphs: share of the lines (paragraphs) that repeat an earlier one.
        line_chars, paragraph_chars: the same, in characters.
        top_ngrams: n -> share of characters inside the most frequent n-gram.
        duplicate_ngrams: n -> share of characters inside n-grams that occurred before.
        min_words: n-gram rules pass over shorter texts.
    """

    lines: float | None = 0.30
    paragraphs: float | None = 0.30
    line_chars: float | None = 0.20
    paragraph_chars: float | None = 0.20
    top_ngrams: Mapping[int, float] = field(default_factory=lambda: TOP_NGRAMS)
    duplicate_ngrams: Mapping[int, float] = field(default_factory=lambda: DUPLICATE_NGRAMS)
    min_words: int = 50

    name = "repetition"
    looks_for = "lines, paragraphs and n-grams said again and again (Gopher's shares)"

    def check(self, record: Record) -> Finding | None:
        for text in wanted_texts(record):
            problem = self._parts(text) or self._ngrams(text)
            if problem is not None:
                return Finding("drop", *problem)
        return None

    def _parts(self, text: str) -> tuple[str, str] | None:
        lines = [line.strip() for line in text.split("\n") if _WORD.search(line)]
        paragraphs = [part.strip() for part in text.split("\n\n") if _WORD.search(part)]
        for word, parts, limit, in_characters in (
            ("lines", lines, self.lines, False),
            ("lines", lines, self.line_chars, True),
            ("paragraphs", paragraphs, self.paragraphs, False),
            ("paragraphs", paragraphs, self.paragraph_chars, True),
        ):
            if limit is not None and repeated_share(parts, characters=in_characters) > limit:
                measure = "characters in repeated" if in_characters else "repeated"
                return f"{measure} {word}", Counter(parts).most_common(1)[0][0]
        return None

    def _ngrams(self, text: str) -> tuple[str, str] | None:
        words = units(text)
        if len(words) < self.min_words:
            return None
        longer = 2 if mostly_unspaced(words) else 1
        repeated: dict[int, list[int]] = {}  # n -> where n-grams begin that occur more than once
        for word, measure, limits in (
            ("top", top_ngram, self.top_ngrams),
            ("duplicate", duplicate_ngrams, self.duplicate_ngrams),
        ):
            for n, limit in limits.items():
                size = n * longer
                shorter = max((known for known in repeated if known <= size), default=None)
                groups = repeats(words, size, None if shorter is None else repeated[shorter])
                repeated[size] = sorted(chain.from_iterable(groups))
                share, gram = measure(words, size, groups)
                if share > limit:
                    return f"{word} {n}-grams", gram
        return None
