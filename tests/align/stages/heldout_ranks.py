"""What test_heldout_ranks.py runs on one and on two ranks: looks at held-out prompts, during and after training.

`heldout.json` of a folder then holds the figures of every look, of the first rank; `others.json` those of the last, and
what each rank said of a reward and of an engine that fail on the last one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from align.evaluation.replies import JudgedReply
from align.recipe import Recipe, load_recipe
from align.runtime.errors import AlignError
from align.runtime.ranks import spread
from align.stages import heldout_replies, policy_evaluation
from align.stages.distance import reply_kl
from data_formats.records import Message, Prompt
from reward.protocol import RewardError
from reward.sources import FunctionReward
from rollouts.errors import RolloutError
from tests.align.trainers import ppo_case

ASKED = 5  # of which two ranks have shares of unequal size


def main(folder: Path, file: Path) -> None:
    PartialState(cpu=True)
    recipe, last = load_recipe(file), _is_last()
    found = {"end": policy_evaluation.evaluate_policy(recipe, "ppo", {}), "kl": _kl(recipe), "looks": _looks(folder)}
    found["places"] = spread(
        range(ASKED), lambda part, first: [(one, first + at) for at, one in enumerate(part)], _lost
    )
    found["few"] = spread("a", lambda part, first: [part], _lost)  # fewer than ranks
    if torch.distributed.is_initialized():
        found |= {"failed": _failures(recipe, last)}
    name = f"rank-{torch.distributed.get_rank()}" if torch.distributed.is_initialized() else "one"
    (folder / f"{name}.json").write_text(json.dumps(found))


def _is_last() -> bool:
    together = torch.distributed.is_initialized()
    return not together or torch.distributed.get_rank() == torch.distributed.get_world_size() - 1


def _lost(words: str) -> Exception:
    return AssertionError(words)


def _kl(recipe: Recipe) -> float:
    prompts = [Prompt((Message("user", text),)) for text in ("Why?", "And how is that, then?", "So?")]
    ids = [[(7, 8, 258), (9,)], [(10, 256, 11, 12), (258,)], [(5,), (6, 7)]]
    replies = [[JudgedReply("", True, len(one), {}, one) for one in row] for row in ids]
    ends = recipe.ppo.init_from, Path(recipe.output_dir, "ppo", "model")
    return reply_kl(recipe, *ends, prompts, replies, batch_size=1)


def _looks(folder: Path) -> dict[str, float]:
    """Of a PPO trainer before its first step, in float64, where rounding changes no token."""
    trainer = ppo_case.trainer(
        folder,
        policy_model=ppo_case.exact(ppo_case.policy(0)),
        reference=ppo_case.exact(ppo_case.policy(5)),
        critic_model=ppo_case.ExactCritic(1),
        gold=FunctionReward(ppo_case.vowels, "gold"),
    )
    return trainer.evaluate(ppo_case.prompts(ASKED), num_samples=3)


def _failures(recipe: Recipe, last: bool) -> list[str]:
    """Of a reward and of an engine on the last rank; and of a reward on more replies than may be left out."""
    said = []

    def judge(prompts: list[Any], completions: list[str]) -> list[float]:
        if last:
            raise RewardError("no score")
        return [1.0] * len(completions)

    def ask(reward: FunctionReward, on_error: str = "stop") -> None:
        prompts = policy_evaluation.eval_prompts(recipe)
        given = (recipe, recipe.ppo.init_from, prompts, [reward], recipe.ppo.rollout, 2, on_error)
        try:
            heldout_replies.replies_of(*given)
        except AlignError as error:
            said.append(str(error))

    ask(FunctionReward(judge, "mine"))
    ask(FunctionReward(judge, "mine"), "mask")  # the last rank's share is more than a quarter
    judged = heldout_replies.judged_replies

    def fail(*args: Any) -> Any:
        if last:
            raise RolloutError("no room")
        return judged(*args)

    heldout_replies.judged_replies = fail
    ask(FunctionReward(judge, "mine"))
    heldout_replies.judged_replies = judged
    return said
