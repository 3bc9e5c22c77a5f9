"""What becomes of a judge that fails: the run stops, it is asked again, or its pairs have no verdict."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from align.runtime.errors import AlignError
from reward.failures import CALLS, OnRewardError
from reward.judges.protocol import Judge, Judgment, ReplyPair
from reward.protocol import RewardError

logger = logging.getLogger(__name__)


def ask(judge: Judge, pairs: Sequence[ReplyPair], on_error: OnRewardError = "stop") -> list[list[Judgment]]:
    """What `judge` says of each pair, in order.

    Args:
        on_error: `stop`: the first failure is one; `retry`: the same pairs are asked about up to `CALLS` times; `mask`:
            none of them has a verdict then. Nothing is learnt from a judge, so there is no bound on how many.

    Raises:
        RewardError: the judge failed, or gave something else than a list of judgments for every pair.
    """
    if not pairs:
        return []
    for call in range(1, CALLS if on_error == "retry" else 1):
        try:
            return _compared(judge, pairs)
        except RewardError as error:
            logger.warning("%s (call %d of %d, on_reward_error: retry)", error, call, CALLS)
    try:
        return _compared(judge, pairs)
    except RewardError as error:
        if on_error != "mask":
            raise
        logger.warning("%d pairs of replies have no verdict: %s", len(pairs), error)
        return [[Judgment(None, note=str(error))] for _ in pairs]


def _compared(judge: Judge, pairs: Sequence[ReplyPair]) -> list[list[Judgment]]:
    """With every failure of somebody's own class a RewardError; memory that runs out is none of the judge's."""
    try:
        found = [list(said) for said in judge.compare(pairs)]
    except (AlignError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RewardError(f"judge {judge.name!r} failed: {type(error).__name__}: {error}") from error
    if len(found) != len(pairs) or not all(isinstance(one, Judgment) for said in found for one in said):
        told = f"it gave {len(found)} for {len(pairs)} pairs" if len(found) != len(pairs) else "it gave something else"
        raise RewardError(f"judge {judge.name!r} must give a list of Judgments for every pair: {told}")
    return found
