"""Does the reward that a policy was trained on still know better from worse among that policy's own replies?

After a stage that trains a policy on a reward model, wherever somebody judges who is no part of it (`judge`, else the
gold score of the embedded world, else ppo's `gold_reward`): of two sampled replies to a held-out prompt, how often does
the reward prefer the one that the judge does, for the policy before the stage and the one after it. Where that has
surely fallen, a new round of comparisons is due (`align.evaluation.own_replies`). Nothing is sampled for it; a judge
with scores has given them already, any other is asked about the first two replies to each prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from align.evaluation.own_replies import accuracy_on_own, change, due
from align.evaluation.replies import JudgedReply
from align.evaluation.table import percent
from align.recipe import Recipe
from align.recipe.lineage import reward_origins
from align.runtime.json_files import RunFileError
from align.stages import common
from align.stages.common import Summary
from data_formats.records import Prompt
from reward.failures import OnRewardError
from reward.judges.failures import ask
from reward.judges.protocol import Judge, ReplyPair
from reward.judges.rewards import RewardJudge, by_scores

REWARD, MINE = "reward", "reward_on_own"
ENDS = {"accuracy": "", "low": "_low", "high": "_high"}
Replies = Sequence[Sequence[JudgedReply]]


def reward_on_own(
    recipe: Recipe,
    stage: str,
    prompts: Sequence[Prompt],
    sampled: tuple[Replies, Replies] | None,
    judge: Judge,
    on_error: OnRewardError = "stop",
) -> Summary:
    """`reward_on_own` for the summary: accuracies `before` and `after` (`accuracy_on_own`), their `change`, who judged,
    what the reward model's own stage found on `heldout` pairs, and `due`, a sentence or "".

    Empty where no reward model judges, the judge is the reward itself, or nothing was sampled twice.

    Args:
        sampled: replies at temperature 1 of the policy before and after the stage, with the reward's scores.
    """
    itself = isinstance(judge, RewardJudge) and judge.reward.name == REWARD
    if itself or sampled is None or not reward_origins(recipe, stage):
        return {}
    before, after = (_accuracy(prompts, replies, judge, on_error) for replies in sampled)
    if before is None or after is None:
        return {}
    sentence = due(before, after)
    if sentence:
        common.LOG.warning("%s: %s (judged by %s)", stage, sentence, judge.described)
    what = f"reward right on pairs of the policy's own replies, judged by {judge.described}"
    interval = f"{percent(after['accuracy'])} [{percent(after['low'])}, {percent(after['high'])}]"
    found = {"judged_by": judge.described, "before": before, "after": after, "change": change(before, after)}
    found |= {"heldout": _heldout(recipe, stage), "due": sentence}
    return {MINE: found, "headline": [(what, percent(before["accuracy"]), interval)]}


def _accuracy(prompts: Sequence[Prompt], replies: Replies, judge: Judge, on_error: OnRewardError) -> Summary | None:
    pairs = list(_pairs(replies, alone=not isinstance(judge, RewardJudge)))
    margins = [one.scores[REWARD] - other.scores[REWARD] for _, one, other in pairs]
    if isinstance(judge, RewardJudge):
        name = judge.reward.name
        said = [[by_scores(one.scores[name], other.scores[name]).winner] for _, one, other in pairs]
    else:
        asked = [ReplyPair(*(one.sample(prompts[at]) for one in sides)) for at, *sides in pairs]
        said = [[one.winner for one in judgments] for judgments in ask(judge, asked, on_error)]
    rows = [
        (at, winner, margin)
        for (at, *_), winners, margin in zip(pairs, said, margins, strict=True)
        for winner in winners
    ]
    return accuracy_on_own(*zip(*rows, strict=True)) if rows else None


def _pairs(replies: Replies, *, alone: bool) -> Iterator[tuple[int, JudgedReply, JudgedReply]]:
    """Each two replies to a prompt that say different things, or the first such two alone; with the prompt's number."""
    for at, row in enumerate(replies):
        found = ((at, one, other) for one, other in combinations(row, 2) if one.text != other.text)
        yield from ([pair] if alone and (pair := next(found, None)) else found)


def _heldout(recipe: Recipe, stage: str) -> Summary | None:
    """The held-out accuracy of a reward model of a run, where the reward is that one alone."""
    origins = list(reward_origins(recipe, stage).values())
    if len(origins) != 1:
        return None
    try:
        folder = Path(common.origin_path(recipe, origins[0], stage=stage)).parent
        found = common.read_summary(folder) or {}
    except (RunFileError, OSError):
        return None
    return {name: found[f"accuracy{end}"] for name, end in ENDS.items()} if "accuracy_high" in found else None
