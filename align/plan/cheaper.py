"""Which one change of the recipe halves what an iteration of ppo costs, found by planning the changed recipe.

Changes are tried in the order of what they take away: pretraining rows and looks first, then passes, then the lengths
and the number of replies, from the smallest change on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from align.plan.parts import Cost
from align.plan.predict import plan_ppo_stage
from align.plan.propose import changed
from align.recipe import Recipe
from align.recipe.ppo_section import PPOSection

HALF = 0.505  # what is rounded counts


def halves(recipe: Recipe, cost: Cost, *, ranks: int = 1) -> str | None:
    """The change, as `key=value`; None where no single one of those known does."""
    for key, value in _changes(recipe.ppo):
        tried = changed(recipe, {key: value}, ranks)
        if tried is None:
            continue
        less = plan_ppo_stage(tried, "ppo", ranks=ranks, device="gpu").cost.flops
        if less <= HALF * cost.flops:
            return f"{key}={value}"
    return None


def _changes(section: PPOSection) -> Iterator[tuple[str, Any]]:
    rollout, every = section.rollout, section.evaluation.every_steps
    if section.uses_ptx:
        for ratio in reversed(range(1, section.ptx_ratio)):
            yield "ppo.ptx_ratio", ratio
    if every is not None:
        for times in (2, 4, 8):
            yield "ppo.evaluation.every_steps", times * every
    for epochs in reversed(range(1, section.num_ppo_epochs)):
        yield "ppo.num_ppo_epochs", epochs
    for key in ("max_completion_length", "max_prompt_length"):
        yield f"ppo.rollout.{key}", getattr(rollout, key) // 2
    for parts in (2, 3, 4):
        yield "ppo.rollout_batch_size", section.rollout_batch_size // parts
