"""Which model a stage starts from: another stage of the recipe, a folder, or a hub id."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from align.recipe.judge_section import ComparisonJudgeSection
from align.recipe.ppo_section import PPOSection
from align.recipe.registry import REWARD_STAGES, STAGES
from align.recipe.reward_section import FunctionPart, ModelPart, RewardPart, plain_parts
from align.recipe.schema import Recipe
from align.recipe.user_code import content_hash

WITH_CHATML = "model_with_chatml"  # in a run: the model that it begins with, given tokens for turns
TRAINED = "trained.json"  # beside a model that is trained and not yet measured


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


def has_model(recipe: Recipe, stage: str) -> bool:
    """Whether the stage's model is there as others may start from it: trained, and whatever comes after is done."""
    return model_dir(recipe, stage).is_dir() and not (stage_dir(recipe, stage) / TRAINED).exists()


def _named(recipe: Recipe, value: str) -> Origin:
    return Origin("stage", value) if value in STAGES else Origin("path", value)


def _default(recipe: Recipe, candidates: tuple[str, ...]) -> Origin:
    for stage in candidates:
        if getattr(recipe, stage) is not None:
            return Origin("stage", stage)
    return Origin("path", recipe.model.path) if recipe.model.path is not None else Origin("new", "architecture")


def _newest_reward(recipe: Recipe) -> Origin:
    return _default(recipe, REWARD_STAGES[::-1])


def init_origin(recipe: Recipe, stage: str) -> Origin:
    """Where the trained model of `stage` (the policy, for ppo) starts."""
    named = getattr(recipe, stage).init_from
    return _named(recipe, named) if named is not None else _default(recipe, STAGES[stage].parents)


def reward_origins(recipe: Recipe, stage: str = "ppo") -> dict[str, Origin]:
    """Where the reward models of ppo or rejection come from, by role: `reward` (`reward_from`, else rm, else pmp), or
    for every model among the parts of `reward` the part's key (`reward.0`, `reward.1.safety`); none where no model
    judges."""
    section = getattr(recipe, stage)
    if not section.reward:
        named = section.reward_from
        return {"reward": _named(recipe, named) if named else _newest_reward(recipe)}
    return _part_origins(recipe, plain_parts(section.reward))


def judge_origins(recipe: Recipe, stage: str = "ppo") -> dict[str, Origin]:
    """Where the models come from that only look on, those among the parts of `gold_reward` and `judge`, by the part's
    key (`gold_reward.0`, `judge`)."""
    section = getattr(recipe, stage)
    gold = plain_parts(getattr(section, "gold_reward", ()), "gold_reward")
    return _part_origins(recipe, [*gold, *section.judge_parts()])


def _part_origins(recipe: Recipe, parts: Iterable[tuple[str, RewardPart]]) -> dict[str, Origin]:
    return {
        key: _named(recipe, part.model_from) if part.model_from else _newest_reward(recipe)
        for key, part in parts
        if isinstance(part, ModelPart)
    }


def origins_of(recipe: Recipe, stage: str, key: str) -> dict[str, Origin]:
    """Those of `reward_origins` or of `judge_origins` that `key` (`reward`, `gold_reward`, `judge`) may name."""
    return reward_origins(recipe, stage) if key == "reward" else judge_origins(recipe, stage)


def critic_origin(recipe: Recipe) -> Origin:
    """Where ppo's critic, if it has one, starts: `critic_from`, else the first reward model, else the policy."""
    if recipe.ppo.critic_from:
        return _named(recipe, recipe.ppo.critic_from)
    return next(iter(reward_origins(recipe).values()), init_origin(recipe, "ppo"))


def warmup_origin(recipe: Recipe) -> Origin | None:
    """Where the replies lie that ppo's critic is warmed up on, a stage's folder or a path; None: they are sampled."""
    named = recipe.ppo.critic_warmup_from
    return None if named is None else _named(recipe, named)


def selection_origins(recipe: Recipe, section: Any) -> dict[str, Origin]:
    """Where the models come from by which a stage's rows are chosen, by key (`selection.quality.model_from`)."""
    named = () if section.selection is None else section.selection.models()
    return {f"selection.{key}": _named(recipe, name) for key, name in named}


def inputs(recipe: Recipe, stage: str) -> dict[str, Origin]:
    """Every model that `stage` needs, by role; and the replies that ppo's critic is warmed up on (`warm-up`)."""
    if not STAGES[stage].samples:
        return {"model": init_origin(recipe, stage)} | selection_origins(recipe, getattr(recipe, stage))
    found = {"policy": init_origin(recipe, stage), **reward_origins(recipe, stage)}
    if isinstance(getattr(recipe, stage), PPOSection) and recipe.ppo.estimator.critic:
        found["critic"] = critic_origin(recipe)
        replies = warmup_origin(recipe)
        found |= {"warm-up": replies} if replies is not None else {}
    return found | judge_origins(recipe, stage) | selection_origins(recipe, getattr(recipe, stage))


def user_code(recipe: Recipe, stage: str) -> dict[str, str]:
    """What of the user's own code the stage runs, `file.py:name` or `package.module:name`, by full key."""
    section = getattr(recipe, stage)
    named = dict(section.code())
    if STAGES[stage].samples:
        functions = FunctionPart | ComparisonJudgeSection
        named |= {f"{key}.function": part.function for key, part in section.judges() if isinstance(part, functions)}
    return {f"{stage}.{key}": spec for key, spec in named.items()}


def code_hashes(recipe: Recipe) -> dict[str, str]:
    """The contents of the files of user code of every stage, hashed, by full key."""
    specs = {key: spec for stage in recipe.stages for key, spec in user_code(recipe, stage).items()}
    return {key: found for key, spec in specs.items() if (found := content_hash(spec)) is not None}
