"""Which model a stage starts from: another stage of the recipe, a folder, or a hub id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from align.recipe.schema import DEFAULT_PARENTS, STAGES, Recipe


@dataclass(frozen=True, slots=True)
class Origin:
    """`kind` says what `value` is: a stage's name, a path or hub id, or nothing (`new`: made from scratch)."""

    kind: Literal["stage", "path", "new"]
    value: str


def stage_dir(recipe: Recipe, stage: str) -> Path:
    """`<output_dir>/<stage>`."""
    return Path(recipe.output_dir) / stage


def model_dir(recipe: Recipe, stage: str) -> Path:
    """Where a finished stage keeps its model."""
    return stage_dir(recipe, stage) / "model"


def _named(recipe: Recipe, value: str) -> Origin:
    return Origin("stage", value) if value in STAGES else Origin("path", value)


def _default(recipe: Recipe, candidates: tuple[str, ...]) -> Origin:
    for stage in candidates:
        if getattr(recipe, stage) is not None:
            return Origin("stage", stage)
    return Origin("path", recipe.model.path) if recipe.model.path is not None else Origin("new", "architecture")


def init_origin(recipe: Recipe, stage: str) -> Origin:
    """Where the trained model of `stage` (the policy, for ppo) starts."""
    named = getattr(recipe, stage).init_from
    return _named(recipe, named) if named is not None else _default(recipe, DEFAULT_PARENTS[stage])


def reward_origin(recipe: Recipe) -> Origin:
    """Where ppo's reward model comes from: `reward_from`, else rm, else pmp."""
    return _named(recipe, recipe.ppo.reward_from) if recipe.ppo.reward_from else _default(recipe, ("rm", "pmp"))


def critic_origin(recipe: Recipe) -> Origin:
    """Where ppo's critic starts: `critic_from`, else the reward model."""
    return _named(recipe, recipe.ppo.critic_from) if recipe.ppo.critic_from else reward_origin(recipe)


def inputs(recipe: Recipe, stage: str) -> dict[str, Origin]:
    """Every model that `stage` needs, by role."""
    if stage != "ppo":
        return {"model": init_origin(recipe, stage)}
    return {"policy": init_origin(recipe, stage), "reward": reward_origin(recipe), "critic": critic_origin(recipe)}
