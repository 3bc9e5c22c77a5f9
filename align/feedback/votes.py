"""What a judgment says of each two replies that were shown: the one form in which judgments are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from align.feedback.items import FeedbackItem, FeedbackReply
from align.feedback.judgments import HumanJudgment, JudgmentError

Winner = Literal["first", "second", "tie"]
Judged = tuple[FeedbackItem, HumanJudgment]


@dataclass(frozen=True, slots=True)
class Vote:
    """One judgment on two replies.

    Attributes:
        first, second: in the item's order, so that all who judge the pair mean the same by them.
        winner: None where nothing is said of the order: all replies are bad.
        grade: by how much the better one is better, 1 (negligibly) to 4 (significantly), None where that is not said.
            What is said is how far the best rank is from the next one; the best is better than those further down by
            that much at least, and nothing is said of these among themselves.
    """

    judgment: HumanJudgment
    first: FeedbackReply
    second: FeedbackReply
    winner: Winner | None
    grade: int | None = None

    @property
    def pair(self) -> tuple[str, str, str]:
        """What tells the pair: the item and the two replies."""
        return self.judgment.item, self.first.id, self.second.id

    @property
    def first_was_earlier(self) -> bool:
        """Whether this annotator was shown `first` before `second`."""
        shown = self.judgment.shown
        return shown.index(self.first.id) < shown.index(self.second.id)


def matched(items: Sequence[FeedbackItem], judgments: Sequence[HumanJudgment]) -> tuple[list[Judged], int]:
    """Each judgment with its item, and how many judgments are of other items.

    Raises:
        JudgmentError: a judgment names a reply that its item does not have, or all are of other items.
    """
    known = {item.id: item for item in items}
    found = [(known[one.item], one) for one in judgments if one.item in known]
    if judgments and not found:
        raise JudgmentError(
            f"none of the {len(judgments)} judgments is on one of the {len(items)} items (the first is on "
            f"{judgments[0].item}): give the file of items that was judged"
        )
    for item, one in found:
        for name in one.shown:
            if item.reply(name) is None:
                raise JudgmentError(f"judgment {one.id} is on a reply {name!r}, which item {item.id} does not have")
    return found, len(judgments) - len(found)


def votes_of(item: FeedbackItem, judgment: HumanJudgment) -> Iterator[Vote]:
    """The votes of a judgment, one for each two replies that were shown."""
    ranks = {name: rank for rank, names in enumerate(judgment.ranking) for name in names}
    for first, second in combinations([reply for reply in item.replies if reply.id in judgment.shown], 2):
        if not ranks:
            yield Vote(judgment, first, second, None)
            continue
        one, other = ranks[first.id], ranks[second.id]
        winner: Winner = "tie" if one == other else "first" if one < other else "second"
        yield Vote(judgment, first, second, winner, judgment.grade if winner != "tie" and 0 in (one, other) else None)
