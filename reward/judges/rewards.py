"""A reward as judge: the reply with the higher score wins."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reward.failures import MAX_FAILED_SHARE, judge_all
from reward.judges.protocol import ALIKE, Judgment, ReplyPair
from reward.protocol import Reward, Sample


class RewardJudge:
    """The higher score wins, equal ones tie; a reply that the reward fails on leaves its pair without a winner.

    A reply that stands in several pairs (several models against one) is scored once where it is the same `Sample`.

    Args:
        reward: any reward.
        described: which one it is, what follows "judged by" ("the reward model runs/a/rm").
        name: default: the reward's.
    """

    def __init__(self, reward: Reward, *, described: str = "", name: str = ""):
        self.reward, self.name = reward, name or reward.name
        self.described = described or f"the reward {reward.name}"

    def compare(self, pairs: Sequence[ReplyPair]) -> list[list[Judgment]]:
        """One judgment a pair, with both scores.

        Raises:
            RewardError: the reward is not to be had, or failed on more than a quarter of the replies.
        """
        asked = [sample for pair in pairs if not pair.alike for sample in (pair.first, pair.second)]
        samples = list({id(sample): sample for sample in asked}.values())
        verdict, failures = judge_all(self.reward, samples, "mask", most=math.ceil(MAX_FAILED_SHARE * len(samples)))
        scores = {id(sample): score for sample, score in zip(samples, verdict.scores, strict=True)}
        failed = [sample for sample in samples if math.isnan(scores[id(sample)])]
        why = {id(sample): failure for sample, failure in zip(failed, failures, strict=True)}
        return [[ALIKE if pair.alike else _judgment(pair, scores, why)] for pair in pairs]


def _judgment(pair: ReplyPair, scores: dict[int, float], why: dict[int, str]) -> Judgment:
    def of(sample: Sample) -> float:
        return scores[id(sample)]

    first, second = of(pair.first), of(pair.second)
    if failed := [why[id(sample)] for sample in (pair.first, pair.second) if id(sample) in why]:
        return Judgment(None, note=failed[0])
    return by_scores(first, second)


def by_scores(first: float, second: float) -> Judgment:
    """The higher score wins; there is no winner where one of them is NaN."""
    if math.isnan(first) or math.isnan(second):
        return Judgment(None)
    return Judgment("tie" if first == second else "first" if first > second else "second", scores=(first, second))
