"""The reward that a word on a command line names, built as the stages build it.

file.py:name, package.module:name     a Python function
RECIPE[:SECTION.reward]               what the recipe's section names: one part, a weighted list, a gate
runs/NAME                             a run: the model of its rm stage, else of pmp
runs/NAME/rm, a folder, a hub id      a reward model of ours (whole or an adapter), or a foreign classifier
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from align.models.named import reward_at
from align.recipe import Recipe, RecipeError, load_recipe
from align.recipe.lineage import init_origin
from align.recipe.registry import SAMPLING_STAGES
from align.recipe.reward_section import LengthPart, plain_parts
from align.recipe.shipped import shipped_recipes
from align.runtime.paths import typed_path
from align.runtime.pieces import stamp
from reward.failures import OnRewardError
from reward.protocol import Reward

SECTION = re.compile(r"(.+):(\w+)\.(reward|gold_reward)")
SAMPLING = SAMPLING_STAGES[::-1]


@dataclass(frozen=True, slots=True)
class NamedReward:
    """A reward, and what becomes of the replies that it fails on where its recipe says so."""

    reward: Reward
    on_error: OnRewardError = "stop"


def named_reward(word: str, *, batch_size: int = 64, device: Any = None, dtype: str = "auto") -> NamedReward:
    """The reward that `word` names, frozen.

    Args:
        batch_size: replies held at once by a model that is named itself; a recipe says its own.
        device: where models are put.
        dtype: of the weights of such a model.

    Raises:
        MissingFileError, ModelFileError: nothing there, or torn.
        RecipeError: a recipe with errors, or without that section.
        RewardError: a function that cannot be loaded.
    """
    from align.stages.rewards import load_function
    from reward.sources import FunctionReward, load_reward

    place, colon, name = word.rpartition(":")
    if found := SECTION.fullmatch(word):
        return _of_recipe(load_recipe(found[1]), found[2], found[3], device)
    if colon and name.isidentifier() and (place.endswith(".py") or re.fullmatch(r"[\w.]+", place)):
        return NamedReward(FunctionReward(load_function(word), name))
    if _is_recipe(word):
        recipe = load_recipe(word)
        return _of_recipe(recipe, _section(recipe), "reward", device)
    return NamedReward(load_reward(reward_at(word), batch_size=batch_size, name=word, device=device, dtype=dtype))


def reward_stamp(word: str) -> list[list[Any]]:
    """Names, sizes and times of the files that `word` names, empty for a hub id: whether it still means the same."""
    place = reward_at(word) if typed_path(word).is_dir() else word
    return stamp(place) or stamp(place.rpartition(":")[0])


def _is_recipe(word: str) -> bool:
    path = typed_path(word)
    return path.is_file() or (path.suffix in (".yaml", ".yml")) or (word in shipped_recipes() and not path.exists())


def _section(recipe: Recipe) -> str:
    stage = next((name for name in SAMPLING if getattr(recipe, name) is not None), None)
    if stage is None:
        raise RecipeError([f"has no section with a reward ({' or '.join(SAMPLING)})"], recipe.name)
    return stage


def _of_recipe(recipe: Recipe, stage: str, key: str, device: Any) -> NamedReward:
    from align.models.tokenizer import recipe_tokenizer
    from align.stages.common import origin_path
    from align.stages.rewards import build_reward

    section = getattr(recipe, stage, None) if stage in SAMPLING else None
    parts = getattr(section, key, None)
    if parts is None or (key != "reward" and not parts):
        raise RecipeError([f"{stage}.{key}: the recipe has no such reward"], recipe.name)
    counted = any(isinstance(part, LengthPart) and part.unit == "tokens" for _, part in plain_parts(parts))
    tokenizer = None  # the policy's: only lengths in tokens need it, and the policy may not be there
    if counted:
        tokenizer = recipe_tokenizer(origin_path(recipe, init_origin(recipe, stage), stage=stage), recipe.model)
    reward = build_reward(recipe, tokenizer, stage=stage, key=key, device=device)
    return NamedReward(reward, section.on_reward_error)
