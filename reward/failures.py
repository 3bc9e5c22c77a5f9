"""What becomes of a reward that fails: the run stops, the call is made again, or the replies at fault are left out.

A reward judges a batch in one call and fails as a whole, be it for one reply alone (a pattern that never ends, a 4xx of
an endpoint). `mask` finds the replies that are at fault by halving: what fails is asked again in two halves, down to
single replies, until more have failed than may. So f failures among N replies cost about 2 f log2(N) calls, of at most
2 N replies in all for the first of them; and where everything fails, it is given up after `most` single replies.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal

import torch

from align.runtime.errors import AlignError
from reward.protocol import Reward, RewardError, RewardUnavailableError, Sample, Verdict, judge
from reward.scoring import checked

logger = logging.getLogger(__name__)

OnRewardError = Literal["stop", "retry", "mask"]
CALLS = 3  # of one batch, with `retry`
MAX_FAILED_SHARE = 0.25  # of the replies of a batch over all ranks that `mask` may leave out


def judge_all(
    reward: Reward, samples: Sequence[Sample], on_error: OnRewardError = "stop", most: int = 0
) -> tuple[Verdict, list[str]]:
    """The verdict on all replies, and why some have none.

    Args:
        on_error: `stop`: the first failure is one; `retry`: the same call is made up to `CALLS` times; `mask`: replies
            that make the reward fail have NaN as score, and as that of every part.
        most: how many replies may fail with `mask`.

    Raises:
        RewardError: the reward failed, at the last call or on more than `most` replies; or it is not to be had at all
            (`RewardUnavailableError`), which no reply is to blame for.
    """
    if on_error == "mask":
        return _judge_apart(reward, samples, most)
    for call in range(1, CALLS):
        if on_error == "stop":
            break
        try:
            return judge_whole(reward, samples), []
        except RewardError as error:
            logger.warning("%s (call %d of %d, on_reward_error: retry)", error, call, CALLS)
    return judge_whole(reward, samples), []


def judge_whole(reward: Reward, samples: Sequence[Sample]) -> Verdict:
    """`judge`, with one finite float a reply, and every failure a RewardError; memory that runs out is no failure of
    the reward's."""
    name = getattr(reward, "name", type(reward).__name__)
    try:
        verdict = judge(reward, samples)
    except (AlignError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of somebody's own class
        raise RewardError(f"reward {name!r} failed: {type(error).__name__}: {error}") from error
    try:
        for scores in (verdict.scores, *verdict.parts.values()):
            checked(scores, len(samples), name)
    except RewardError as error:
        what = f"must give one finite float for each of {len(samples)} replies"
        raise type(error)(f"reward {name!r} {what} ({str(error).partition(' gave ')[2]})") from None
    return verdict


def _judge_apart(reward: Reward, samples: Sequence[Sample], most: int) -> tuple[Verdict, list[str]]:
    scores, parts, failures = [math.nan] * len(samples), {}, []

    def ask(rows: range) -> None:
        try:
            verdict = judge_whole(reward, [samples[row] for row in rows])
        except RewardUnavailableError:
            raise
        except RewardError as error:
            if len(rows) > 1:
                middle = len(rows) // 2
                ask(rows[:middle])
                ask(rows[middle:])
                return
            failures.append(str(error))
            if len(failures) > most:
                raise RewardError(f"{error}; that is reply number {len(failures)} that cannot be judged") from error
            return
        scores[rows.start : rows.stop] = verdict.scores
        for name, said in verdict.parts.items():
            parts.setdefault(name, [math.nan] * len(samples))[rows.start : rows.stop] = said

    ask(range(len(samples)))
    return Verdict(scores, parts), failures
