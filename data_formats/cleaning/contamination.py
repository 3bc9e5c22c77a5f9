"""Training records that hold evaluation prompts: by n-gram, in the manner of GPT-3 and lm-eval-harness, and reworded.

A training text overlaps with an evaluation prompt when they share 13 words in a row (lower case, no punctuation), or,
where the prompt is mostly Chinese or Japanese, `chinese_n` characters. A shorter prompt is found whole: anywhere from 8
words on (GPT-3's least n), below that where a whole turn says it. n-grams that more than `max_prompts` evaluation
prompts share are a template's words and do not count (GPT-3 ignores frequent n-grams of the training set instead).

A prompt is *reworded* in a passage that has at least the share `reworded` of its words in their order, and `n` of them
(Qwen2.5, section 3: a longest common subsequence of 13 words and of 60 % of the shorter text). Departure: the passage
is about as long as the prompt and shares `SEED` words in a row with it, since in a long text any words come in any
order.

Two kinds are told apart (Qwen report 2.1): *input*, the prompt is somewhere in the record, and *input and label*, its
answer is in the record as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from data_formats.cleaning.steps import Finding
from data_formats.cleaning.texts import reply_texts, turns
from data_formats.cleaning.units import mostly_unspaced, units
from data_formats.records import Comparison, Demonstration, Document, Prompt, Record

SHORTEST = 8  # words of a prompt that is looked for inside of texts
SEED = 4  # words in a row by which a reworded prompt is found
_HEAD = 3  # words in a row that are looked up first
# A text and a prompt that say the same few words again and again (tables of numbers) would be compared everywhere.
_PLACES = 8  # where in one prompt the same SEED words are looked for
_LOOKS = 64  # passages of one text that are compared with one prompt wherever they begin; more, at every quarter

Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Item:
    """An evaluation prompt: its words, the words of an n-gram, how many n-grams it has, its answers between blanks."""

    words: list[str]
    n: int
    size: int
    labels: tuple[str, ...]


def _grams(words: list[str], n: int) -> Iterator[Gram]:
    return (tuple(words[at : at + n]) for at in range(len(words) - n + 1))


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


def common_subsequence(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, by bits of one number (Hyyrö 2004)."""
    where: dict[str, int] = {}
    for at, word in enumerate(left):
        where[word] = where.get(word, 0) | 1 << at
    every = unmatched = (1 << len(left)) - 1
    for word in right:
        both = unmatched & where.get(word, 0)
        unmatched = (unmatched + both | unmatched - both) & every
    return len(left) - unmatched.bit_count()


class Decontamination:
    """Drops what overlaps with evaluation records.

    Memory: the n-grams of the evaluation prompts, about 1 KB a word (half without `reworded`); nothing per record.

    Args:
        evaluation: prompts (with their reference), demonstrations or comparisons not to be trained on.
        n: words of an n-gram, from 3.
        chinese_n: characters of one, for prompts mostly in Chinese or Japanese.
        kind: "input" drops either kind of overlap; "input_and_label" drops only records that hold the answer too,
            and notes the others.
        min_share: the share of a prompt's n-grams that must be in the record; 0: one is enough.
        reworded: the share of a prompt's words that a passage must have in their order; None: only n-grams count.
        max_prompts: n-grams of more evaluation prompts than this are ignored.
    """

    name = "decontamination"
    looks_for = "n-grams of evaluation prompts, these prompts reworded, and their answers"

    def __init__(
        self,
        evaluation: Iterable[Record],
        *,
        n: int = 13,
        chinese_n: int = 13,
        kind: Literal["input", "input_and_label"] = "input",
        min_share: float = 0.0,
        reworded: float | None = 0.6,
        max_prompts: int = 10,
    ):
        self._kind, self._min_share, self._reworded = kind, min_share, reworded
        self._items: list[_Item] = []
        whole: dict[Gram, set[int]] = {}  # prompts that are found as whole turns only
        grams: dict[Gram, set[int]] = {}  # of n words; a shorter prompt is one
        seeds: dict[Gram, dict[int, list[int]]] = {}  # of SEED words: prompt -> where in it
        for record in evaluation:
            asked, labels = _question_and_labels(record)
            answers = tuple(filter(str.strip, map(_joined, labels)))
            for words in filter(None, map(units, asked)):
                item, most = len(self._items), chinese_n if mostly_unspaced(words) else n
                short = len(words) < min(most, SHORTEST)
                own = set(_grams(words, min(most, len(words))))
                for gram in own:
                    (whole if short else grams).setdefault(gram, set()).add(item)
                for at, gram in enumerate(_grams(words, SEED) if reworded is not None else ()):
                    places = seeds.setdefault(gram, {}).setdefault(item, [])
                    if len(places) < _PLACES:
                        places.append(at)
                self._items.append(_Item(words, most, len(own), answers))
        self._whole, self._grams = (
            {gram: tuple(sorted(items)) for gram, items in found.items() if len(items) <= max_prompts}
            for found in (whole, grams)
        )
        self._seeds = {
            gram: tuple((item, at) for item, places in items.items() for at in places)
            for gram, items in seeds.items()
            if len(items) <= max_prompts
        }
        sizes: dict[Gram, set[int]] = {}
        for gram in (*self._grams, *self._seeds):
            sizes.setdefault(gram[:_HEAD], set()).add(len(gram))
        shared = {frozenset(one): tuple(sorted(one)) for one in sizes.values()}
        self._sizes = {head: shared[frozenset(one)] for head, one in sizes.items()}  # first words -> words of n-grams

    def check(self, record: Record) -> Finding | None:
        hits: dict[int, set[Gram]] = {}
        passages: dict[int, str] = {}
        for text in self._texts(record):
            self._look(units(text), hits, passages)
        found = {
            item: " ".join(min(grams))
            for item, grams in hits.items()
            if len(grams) >= self._min_share * self._items[item].size
        }
        what = "input" if found else "reworded input"
        found = found or passages
        if not found:
            return None
        replies = [_joined(reply) for reply in reply_texts(record)]
        for item, excerpt in found.items():
            if any(label in reply for label in self._items[item].labels for reply in replies):
                return Finding("drop", f"{what} and label", excerpt)
        return Finding("drop" if self._kind == "input" else "note", f"{what} only", next(iter(found.values())))

    @staticmethod
    def _texts(record: Record) -> list[str]:
        between = (*record.chosen_turns, *record.rejected_turns) if isinstance(record, Comparison) else ()
        asked = [turn.content for turn in (*turns(record), *between)]
        return asked if isinstance(record, Demonstration) else [*asked, *reply_texts(record)]

    def _look(self, words: list[str], hits: dict[int, set[Gram]], passages: dict[int, str]) -> None:
        """Put in what one text has: of each prompt the n-grams, or the passage that rewords it."""
        for item in self._whole.get(tuple(words), ()):
            hits.setdefault(item, set()).add(tuple(words))
        looked_at: dict[int, set[int]] = {}  # prompt -> where passages began
        for at, head in enumerate(zip(words, words[1:], words[2:], strict=False)):
            for size in self._sizes.get(head, ()):
                gram = tuple(words[at : at + size])
                for item in self._grams.get(gram, ()):
                    hits.setdefault(item, set()).add(gram)
                for item, place in self._seeds.get(gram, ()):
                    if item in passages:
                        continue
                    begins, length = at - place, len(self._items[item].words)
                    own = looked_at.setdefault(item, set())
                    if len(own) >= _LOOKS:
                        begins -= begins % (length // 4 + 1)
                    if begins in own:
                        continue
                    own.add(begins)
                    passage = words[max(0, begins - length // 4) : begins + length + length // 4]
                    if self._rewords(passage, self._items[item]):
                        passages[item] = " ".join(passage)

    def _rewords(self, passage: list[str], item: _Item) -> bool:
        needed = max(item.n, (self._reworded or 0.0) * len(item.words))
        return len(passage) >= needed and common_subsequence(item.words, passage) >= needed
