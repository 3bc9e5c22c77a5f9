"""Training records that overlap with evaluation prompts, by n-gram, in the manner of GPT-3 and lm-eval-harness.

A training text overlaps with an evaluation prompt when they share 13 words in a row (lower case, no punctuation), or,
where the prompt is mostly Chinese or Japanese, `chinese_n` characters. Two kinds are told apart (Qwen report 2.1):
*input*, the prompt is somewhere in the record, and *input and label*, its answer is in the record as well. Departures:
a prompt shorter than n is found only where a whole turn says it; n-grams that more than `max_prompts` evaluation
prompts share are a template's words and do not count (GPT-3 ignores frequent n-grams of the training set instead).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from data_formats.cleaning.steps import Finding
from data_formats.cleaning.texts import reply_texts, turns
from data_formats.cleaning.units import mostly_unspaced, units
from data_formats.records import Comparison, Demonstration, Document, Prompt, Record


@dataclass(frozen=True, slots=True)
class _Item:
    """An evaluation prompt: how many n-grams it has, and its answers as words between blanks."""

    size: int
    labels: tuple[str, ...]


def _grams(words: list[str], n: int) -> Iterator[str]:
    return (" ".join(words[at : at + n]) for at in range(len(words) - n + 1))


def _question_and_labels(record: Record) -> tuple[list[str], list[str]]:
    """What is asked, turn by turn, and the answers that are known."""
    if isinstance(record, Document):
        return [record.text], []
    asked = [turn.content for turn in turns(record) if turn.role == "user"]
    if isinstance(record, Prompt):
        return asked, [record.reference] if record.reference else []
    return asked, [record.chosen] if isinstance(record, Comparison) else list(reply_texts(record))


def _joined(text: str) -> str:
    return f" {' '.join(units(text))} "


class Decontamination:
    """Drops what overlaps with evaluation records.

    Memory: the n-grams of the evaluation prompts, about 150 bytes a word; nothing per training record.

    Args:
        evaluation: prompts (with their reference), demonstrations or comparisons not to be trained on.
        n: words of an n-gram.
        chinese_n: characters of one, for prompts mostly in Chinese or Japanese.
        kind: "input" drops either kind of overlap; "input_and_label" drops only records that hold the answer too,
            and notes the others.
        min_share: the share of a prompt's n-grams that must be in the record; 0: one is enough.
        max_prompts: n-grams of more evaluation prompts than this are ignored.
    """

    name = "decontamination"
    looks_for = "n-grams of evaluation prompts, and of their answers"

    def __init__(
        self,
        evaluation: Iterable[Record],
        *,
        n: int = 13,
        chinese_n: int = 13,
        kind: Literal["input", "input_and_label"] = "input",
        min_share: float = 0.0,
        max_prompts: int = 10,
    ):
        self._sizes = tuple(dict.fromkeys((n, chinese_n)))
        self._kind, self._min_share = kind, min_share
        self._items: list[_Item] = []
        found: dict[str, set[int]] = {}
        for record in evaluation:
            asked, labels = _question_and_labels(record)
            for text in asked:
                words = units(text)
                size = chinese_n if mostly_unspaced(words) else n
                grams = set(_grams(words, size)) if len(words) >= size else {_joined(text)}
                if not words:
                    continue
                for gram in grams:
                    found.setdefault(gram, set()).add(len(self._items))
                self._items.append(_Item(len(grams), tuple(filter(str.strip, map(_joined, labels)))))
        self._index = {gram: tuple(sorted(where)) for gram, where in found.items() if len(where) <= max_prompts}

    def check(self, record: Record) -> Finding | None:
        hits: dict[int, set[str]] = {}
        for text in self._texts(record):
            for gram in self._shared(text):
                for item in self._index[gram]:
                    hits.setdefault(item, set()).add(gram)
        found = {i: grams for i, grams in hits.items() if len(grams) >= self._min_share * self._items[i].size}
        if not found:
            return None
        replies = None
        for item, grams in found.items():
            replies = replies if replies is not None else [_joined(reply) for reply in reply_texts(record)]
            if any(label in reply for label in self._items[item].labels for reply in replies):
                return Finding("drop", "input and label", min(grams).strip())
        excerpt = min(next(iter(found.values()))).strip()
        return Finding("drop" if self._kind == "input" else "note", "input only", excerpt)

    @staticmethod
    def _texts(record: Record) -> list[str]:
        asked = [turn.content for turn in turns(record)]
        return asked if isinstance(record, Demonstration) else [*asked, *reply_texts(record)]

    def _shared(self, text: str) -> Iterator[str]:
        """The n-grams of the index that a text has, the whole text included."""
        words = units(text)
        if (whole := f" {' '.join(words)} ") in self._index:
            yield whole
        for size in self._sizes:
            yield from (gram for gram in _grams(words, size) if gram in self._index)
