"""Rules for documents of the web: Gopher's quality filter and C4's heuristics. Records of other kinds pass.

Gopher: Rae et al. 2021, A1.1, "Quality Filtering". C4: Raffel et al. 2020, section 2.2, with the numbers of its code.
Departures, for both: in a text mostly of Chinese or Japanese a character is a word, with the punctuation behind it; the
rule of mean word length is left out there, the stop words are `STOP_WORDS_ZH`, and lines may end with 。！？…”」. C4's
removal of repeated spans of three sentences is `repetition`'s and `near_duplicates`' business, its choice of English
`languages`'.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from data_formats.cleaning.steps import Finding
from data_formats.cleaning.units import UNSPACED, mostly_unspaced, units
from data_formats.records import Document, Record

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
STOP_WORDS_ZH = frozenset("的是在了和有不我这为与或")
_WORD_UNSPACED = re.compile(rf"[{UNSPACED}][^\w\s]*|[^\s{UNSPACED}]+")
_ELLIPSIS = ("...", "…", ". . .", "。。。")
_BULLET = re.compile(r"\s*(?:[-*•●‣·◦▪■–—]|\d{1,3}[.)、])\s*\S")
_SENTENCE_END = re.compile(r"[.!?。！？…]+[\"'”’」』)\]）]*(?=\s|$)|[。！？…]+[”’」』）]*")
_LINE_END = (".", "!", "?", '"', "”", "。", "！", "？", "…", "」", "』")
_JAVASCRIPT = re.compile(r"\bjavascript\b", re.IGNORECASE)
_CITATION = re.compile(r"\[(?:\d{1,4}|edit|citation needed|note \d{1,4}|来源请求)\]")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_LONGEST_WORD = 1000  # characters: C4's code drops lines with a longer one


def words_of(text: str) -> tuple[list[str], bool]:
    """The words with their punctuation, and whether the text is mostly in a script without spaces."""
    unspaced = mostly_unspaced(units(text[:20_000]))
    return (_WORD_UNSPACED.findall(text) if unspaced else text.split()), unspaced


@dataclass(frozen=True, slots=True, kw_only=True)
class Gopher:
    """Documents outside Gopher's limits; None: no limit.

    Attributes:
        min_words, max_words: of a document.
        min_mean_word, max_mean_word: characters of a word on average.
        max_symbols: hashes, or ellipses, for each word.
        max_bullet_lines: share of the lines that begin with a bullet.
        max_ellipsis_lines: share of the lines that end with an ellipsis.
        min_alphabetic: share of the words with a letter.
        min_stop_words: of `STOP_WORDS`, different ones.
    """

    min_words: int | None = 50
    max_words: int | None = 100_000
    min_mean_word: float | None = 3.0
    max_mean_word: float | None = 10.0
    max_symbols: float | None = 0.1
    max_bullet_lines: float | None = 0.9
    max_ellipsis_lines: float | None = 0.3
    min_alphabetic: float | None = 0.8
    min_stop_words: int | None = 2

    name = "gopher"
    looks_for = "documents outside Gopher's limits of quality"

    def check(self, record: Record) -> Finding | None:
        if not isinstance(record, Document):
            return None
        reason = self._problem(record.text)
        return None if reason is None else Finding("drop", reason, record.text)

    def _problem(self, text: str) -> str | None:
        words, unspaced = words_of(text)
        if _below(len(words), self.min_words):
            return "too few words"
        if _above(len(words), self.max_words):
            return "too many words"
        count = max(len(words), 1)
        mean = sum(map(len, words)) / count
        if not unspaced and (_below(mean, self.min_mean_word) or _above(mean, self.max_mean_word)):
            return "mean word too short" if _below(mean, self.min_mean_word) else "mean word too long"
        if _above(text.count("#") / count, self.max_symbols):
            return "too many hashes"
        if _above(sum(map(text.count, _ELLIPSIS)) / count, self.max_symbols):
            return "too many ellipses"
        if _below(sum(any(map(str.isalpha, word)) for word in words) / count, self.min_alphabetic):
            return "too few words with letters"
        return self._lines(text) or self._stop_words(text, unspaced)

    def _lines(self, text: str) -> str | None:
        lines = [line.rstrip() for line in text.split("\n") if line.strip()]
        count = max(len(lines), 1)
        if _above(sum(_BULLET.match(line) is not None for line in lines) / count, self.max_bullet_lines):
            return "too many lines with a bullet"
        if _above(sum(line.endswith(_ELLIPSIS) for line in lines) / count, self.max_ellipsis_lines):
            return "too many lines end with an ellipsis"
        return None

    def _stop_words(self, text: str, unspaced: bool) -> str | None:
        found = (STOP_WORDS_ZH if unspaced else STOP_WORDS).intersection(units(text))
        return "too few stop words" if _below(len(found), self.min_stop_words) else None


def _below(value: float, limit: float | None) -> bool:
    return limit is not None and value < limit


def _above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit


@dataclass(frozen=True, slots=True, kw_only=True)
class C4:
    """C4's heuristics: lines are taken out first, then what is left is judged.

    Attributes:
        terminal_punctuation: lines must end with `.`, `!`, `?` or a closing quotation mark.
        min_line_words: words of a line at least.
        min_sentences: of what is left.
        curly_brackets: whether documents with a curly bracket stay.
        bad_words: what finds a bad word in a text (`data_formats.cleaning.toxicity.WordList`), for whole documents.
    """

    terminal_punctuation: bool = True
    min_line_words: int | None = 5
    min_sentences: int | None = 3
    curly_brackets: bool = False
    bad_words: Callable[[Sequence[str]], list[str | None]] | None = None

    name = "c4"
    looks_for = "lines that are no sentences, and documents with few left, code, lorem ipsum or bad words (C4)"

    def check(self, record: Record) -> Finding | None:
        if not isinstance(record, Document):
            return None
        text = record.text
        if "lorem ipsum" in text.lower():
            return Finding("drop", "lorem ipsum", text)
        if not self.curly_brackets and ("{" in text or "}" in text):
            at = min(at for at in (text.find("{"), text.find("}")) if at >= 0)
            return Finding("drop", "curly bracket", text[max(0, at - 20) : at + 20])
        if self.bad_words is not None and self.bad_words([text])[0] is not None:
            return Finding("drop", "bad word", text)
        lines = text.split("\n")
        cited = [_CITATION.sub("", line) for line in lines]  # first: many sentences end with one
        problems = [self._line_problem(line) for line in cited]
        left = "\n".join(line for line, problem in zip(cited, problems, strict=True) if problem is None)
        if _below(len(_SENTENCE_END.findall(left)), self.min_sentences):
            return Finding("drop", "too few sentences", text)
        if left == text:
            return None
        out = next((line for line, problem in zip(lines, problems, strict=True) if problem and line.strip()), text)
        return Finding(
            "repair", "lines removed" if any(problems) else "citations removed", out, replace(record, text=left)
        )

    def _line_problem(self, line: str) -> str | None:
        line = line.strip()
        if self.terminal_punctuation and (not line.endswith(_LINE_END) or line.endswith("...")):
            return "no terminal punctuation"
        words, _ = words_of(line)
        if _below(len(words), self.min_line_words):
            return "too few words"
        if any(len(word) > _LONGEST_WORD for word in line.split()):
            return "a word without end"
        lower = line.lower()
        if _JAVASCRIPT.search(line) or any(policy in lower for policy in _POLICY):
            return "javascript or policy"
        return None
