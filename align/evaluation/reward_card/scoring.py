"""Cases -> scores: every reply asked once, in pieces that are kept (`align.runtime.pieces`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from align.evaluation.reward_card.cases import Case
from align.evaluation.scoring import AT_ONCE, judge_replies
from align.runtime.pieces import Pieces
from reward.protocol import Reward, RewardError, RewardUnavailableError


def score_cases(
    cases: Sequence[Case],
    reward: Callable[[], Reward],
    pieces: Pieces,
    told: Callable[[int], None] = lambda done: None,
) -> list[list[float]]:
    """The scores of each case's replies.

    Args:
        reward: makes the reward; not called where every piece is there.
        told: is called with the number of replies that are scored.

    Raises:
        RewardError: the reward failed, or gave something that is not finite; names file and row of such a reply.
        StorageError, RunFileError: a piece cannot be written, or not be read.
    """
    replies = [(case, index) for case in cases for index in range(len(case.replies))]
    starts = range(0, len(replies), AT_ONCE)
    for number, start in enumerate(starts):
        some = replies[start : start + AT_ONCE]
        pieces.make(number, partial(_rows, some, reward))
        told(start + len(some))
    scores = (row["score"] for row in pieces.rows(len(starts)))
    return [list(islice(scores, len(case.replies))) for case in cases]


def _rows(some: Sequence[tuple[Case, int]], reward: Callable[[], Reward]) -> Iterator[dict[str, Any]]:
    asked = [case.replies[index] for case, index in some]
    try:
        verdict, _ = judge_replies(reward(), asked)
    except RewardUnavailableError:
        raise
    except RewardError as error:
        case, index = some[_first_failing(reward(), asked)]
        raise RewardError(f"{case.file}, row {case.row}, reply {index + 1}: {error}") from error
    for (case, index), score in zip(some, verdict.scores, strict=True):
        yield {"file": case.file, "row": case.row, "index": index, "score": score}


def _first_failing(reward: Reward, replies: Sequence[Any]) -> int:
    """The place of a reply that the reward fails on, found by halving."""
    low, high = 0, len(replies)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            judge_replies(reward, replies[low:middle])
            low = middle
        except RewardError:
            high = middle
    return low
