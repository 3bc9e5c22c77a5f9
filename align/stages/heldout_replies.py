"""Replies to held-out prompts that the ranks share: each samples and scores its part, and then knows all of them.

They are those of one process: a sampled reply depends on its prompt's place in the whole list, and a reward may fail on
as many replies as it may there. A rank that fails ends the stage on all, with its words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from align.evaluation.replies import JudgedReply, decodings, judged_replies
from align.recipe import Recipe
from align.recipe.rollout_section import RolloutSection
from align.runs.errors import TrainingError
from align.runs.seeding import derive
from align.runtime.ranks import agree, spread
from align.stages import common
from data_formats.records import Prompt
from reward.failures import MAX_FAILED_SHARE, OnRewardError
from reward.protocol import Reward, RewardError
from rollouts.protocol import SamplingParams

Judgements = dict[str, list[list[JudgedReply]]]  # decoding -> prompt -> replies


def replies_of(
    recipe: Recipe,
    path: str | Path,
    prompts: Sequence[Prompt],
    rewards: Sequence[Reward],
    rollout: RolloutSection,
    num_samples: int,
    on_error: OnRewardError = "stop",
) -> Judgements:
    """Replies of the model at `path`, decoded as `align.evaluation` always does, judged by every reward. Every rank
    calls it, and loads the model."""
    from align.models.load import load_causal_lm
    from align.models.tokenizer import recipe_tokenizer
    from align.trainers.engines import sampling_engine

    tokenizer = recipe_tokenizer(str(path), recipe.model)
    seed = derive(recipe.seed, "outcome")
    longest = rollout.max_completion_length
    ways = decodings(tokenizer, num_samples=num_samples, max_new_tokens=longest, seed=seed)
    options = {"tokenizer": tokenizer, "use": "frozen"}
    policy = agree(lambda: load_causal_lm(str(path), recipe.model, **options).to(common.device()), TrainingError)
    told = {"seed": seed, "temperature": 1.0, "ranks": common.ranks()}
    engine = sampling_engine(rollout, policy, tokenizer.pad_token_id, **told)

    def ask(part: Sequence[Prompt], first: int, most: int, params: SamplingParams) -> list[list[JudgedReply]]:
        params = replace(params, first=first)
        return judged_replies(engine, tokenizer, part, params, rewards, on_error, most)

    with closing(engine):
        return {name: shared(prompts, partial(ask, params=params), params.n) for name, params in ways.items()}


def shared(
    prompts: Sequence[Prompt], ask: Callable[[Sequence[Prompt], int, int], list[list[JudgedReply]]], each: int = 1
) -> list[list[JudgedReply]]:
    """The judged replies to all prompts, on every rank.

    Args:
        ask: gives `each` replies to each prompt of a part, from the place of its first and how many replies a reward
            may fail on.

    Raises:
        RewardError: a reward failed on more replies than `mask` allows, on all ranks together.
        TrainingError: another rank failed.
    """
    most = int(MAX_FAILED_SHARE * len(prompts) * each)
    replies = spread(prompts, partial(ask, most=most), TrainingError)
    scores = [one.scores for row in replies for one in row]
    for name in scores[0] if scores else ():
        failed = sum(math.isnan(one.get(name, math.nan)) for one in scores)
        if failed > most:
            raise RewardError(
                f"reward {name!r} failed on {failed} of {len(scores)} replies, more than the {MAX_FAILED_SHARE:.0%} "
                "that on_reward_error: mask leaves out"
            )
    return replies
