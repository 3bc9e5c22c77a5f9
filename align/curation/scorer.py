"""What a scorer is: it rates rows by quality (how good one is) or difficulty (how much is to be learnt from it).

A section of a recipe becomes a scorer by `quality.quality_scorer(section, find_model, folder)` and
`difficulty.difficulty_scorer(section, find_model, folder)`, where `find_model` gives the folder or hub id that a word
of the recipe (a stage, a folder, a hub id) means, and `folder` keeps what was rated. What is missing is said before,
without torch, by `align.recipe.scorer_sections.scorer_problems(key, section)`.

A demonstration teaches its replies; its last one with loss is rated, behind all that stands before it. A comparison
teaches a difference: rated are both of its replies, and a score of the record is the score of the chosen one minus that
of the rejected one, below 0 where the scorer disagrees. Scored replies are one comparison, of the best with the worst.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from align.data.replies import PromptedReply, sides
from align.runtime.errors import AlignError
from data_formats.chatml import reply_text
from data_formats.records import Comparison, Demonstration, Record, Scored

FindModel = Callable[[str], str]
Rated = tuple[PromptedReply, PromptedReply | None]


class ScorerError(AlignError, ValueError):
    """Records that a scorer has nothing to say about, or a model that it cannot rate them with."""


class RecordScorer(Protocol):
    """Rates records; asked for as many as it is given, it may batch them as it likes.

    Attributes:
        name: what its scores are called in files and on pages.
    """

    name: str

    def score(self, records: Sequence[Record]) -> list[float | None]:
        """One finite number a record, the higher the better (or the more difficult); None where it cannot be told."""
        ...


def require_kinds(records: Sequence[Record], name: str, rates: Sequence[str]) -> None:
    """Nothing, where a scorer makes sense of all records.

    Raises:
        ScorerError: names the first kind that it makes none of, and those that it does.
    """
    kinds = {type(record).__name__: at for at, record in reversed(list(enumerate(records)))}
    if wrong := sorted(kinds.keys() - set(rates), key=kinds.get):
        *others, last = rates
        known = f"{', '.join(others)} and {last}" if others else last
        told = f"record {kinds[wrong[0]]} is a {wrong[0]}, which the scorer {name!r} cannot rate"
        raise ScorerError(f"{told} (it rates {known}); name another scorer")


def rated(record: Record) -> Rated | None:
    """The reply that is rated, and the one whose score is taken off; None where there is no such reply with a text in
    it."""
    match record:
        case Demonstration():
            found = record.last_exchange()
            pair = None if found is None else (PromptedReply(*found, record.tools), None)
        case Comparison():
            pair = sides(record)
        case Scored(prompt=prompt, tools=tools):
            told = sorted((reply for reply in record.replies if reply.score is not None), key=lambda one: one.score)
            if not told or told[0].score == told[-1].score:
                return None
            best, worst = (PromptedReply(prompt, reply_text(one.turn), tools) for one in (told[-1], told[0]))
            pair = (best, worst)
        case _:
            pair = None
    if pair is None or not pair[0].prompt or any(one is not None and not one.reply.strip() for one in pair):
        return None
    return pair


def differences(
    records: Sequence[Record], rate: Callable[[Sequence[PromptedReply]], Sequence[float | None]]
) -> list[float | None]:
    """A score a record: that of its reply, less that of the other where it has two; None where one of them has none.

    Args:
        rate: a score an exchange; is asked once about each that differs.
    """
    pairs = [rated(record) for record in records]
    different = list(dict.fromkeys(one for pair in pairs if pair for one in pair if one is not None))
    scores = dict(zip(different, rate(different), strict=True))

    def score(pair: Rated | None) -> float | None:
        if pair is None or scores[pair[0]] is None:
            return None
        if pair[1] is None:
            return scores[pair[0]]
        return None if scores[pair[1]] is None else scores[pair[0]] - scores[pair[1]]

    return [score(pair) for pair in pairs]
