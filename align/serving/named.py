"""The reward that a word on a command line names, built as the stages build it; and the judge.

file.py:name, package.module:name     a Python function
RECIPE[:SECTION.reward]               what the recipe's section names: one part, a weighted list, a gate
runs/NAME                             a run: the model of its rm stage, else of pmp
runs/NAME/rm, a folder, a hub id      a reward model of ours (whole or an adapter), or a foreign classifier

A judge is any of these, the higher score winning, and besides

votes.csv, votes.jsonl                people's rankings of replies
file.py:name                          a function that takes `first` and `second`: it sees both replies
RECIPE:SECTION.judge                  what the recipe's section names as its judge
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from align.models.named import reward_at
from align.recipe import Recipe, RecipeError, load_recipe
from align.recipe.lineage import init_origin, model_dir, user_code
from align.recipe.registry import REWARD_STAGES, SAMPLING_STAGES
from align.recipe.reward_section import LengthPart, RewardPart, plain_parts
from align.recipe.shipped import find_recipe, shipped_recipes
from align.runtime import files
from align.runtime.paths import typed_path
from data_formats.files import ROW_ENDINGS, ending
from reward.failures import OnRewardError
from reward.folder import check_model_folder, local_folder
from reward.judges.protocol import Judge
from reward.protocol import Reward, RewardError

SECTION = re.compile(r"(.+):(\w+)\.(reward|gold_reward)")
JUDGE = re.compile(r"(.+):(\w+)\.judge")
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

    if found := SECTION.fullmatch(word):
        return _of_recipe(load_recipe(found[1]), found[2], found[3], device)
    if name := _function(word):
        return NamedReward(FunctionReward(load_function(word), name))
    if _is_recipe(word):
        recipe = load_recipe(word)
        return _of_recipe(recipe, _section(recipe), "reward", device)
    return NamedReward(load_reward(reward_at(word), batch_size=batch_size, name=word, device=device, dtype=dtype))


def named_judge(
    word: str, *, folder: Path = Path(), batch_size: int = 64, device: Any = None, dtype: str = "auto"
) -> Judge:
    """The judge that `word` names.

    Args, Raises: as of `named_reward`; DataError: rankings that cannot be read.
        folder: where the answers of a language model that a recipe names are kept.
    """
    from align.stages.rewards import load_function
    from reward.judges.functions import FunctionJudge
    from reward.judges.rankings import RankingsJudge
    from reward.judges.rewards import RewardJudge

    if is_rankings(word):
        return RankingsJudge(typed_path(word))
    if found := JUDGE.fullmatch(word):
        return _judge_of_recipe(load_recipe(found[1]), found[2], folder, device)
    name = _function(word)
    described = f"the function {name} of {PurePath(word.rpartition(':')[0]).name}"
    if name and {"first", "second"} <= inspect.signature(function := load_function(word, "judge")).parameters.keys():
        return FunctionJudge(function, name=name, described=described)
    reward = named_reward(word, batch_size=batch_size, device=device, dtype=dtype).reward
    if name:
        return RewardJudge(reward, name=name, described=described)
    kind = "reward" if SECTION.fullmatch(word) or _is_recipe(word) else "reward model"
    return RewardJudge(reward, described=f"the {kind} {word}")


def check_judge(word: str) -> Judge | None:
    """A judge that costs nothing to hold, made at once; None for a model or recipe, whose folder or section is there.

    Raises: as `named_judge`.
    """
    if is_rankings(word) or _function(word):
        return named_judge(word)
    if found := JUDGE.fullmatch(word):
        _require_judge(load_recipe(found[1]), found[2])
    elif found := SECTION.fullmatch(word):
        _parts(load_recipe(found[1]), found[2], found[3])
    elif not _is_recipe(word) and (folder := local_folder(reward_at(word))):
        check_model_folder(folder)
    return None


def is_rankings(word: str) -> bool:
    """Whether it names a file of rows: what holds no model and no recipe holds people's verdicts."""
    return ending(typed_path(word)) in ROW_ENDINGS


def reward_stamp(word: str) -> list[list[Any]]:
    """Names, sizes and times of the files that the reward or judge is made of, as far as they lie here (of a hub id
    none do): whether `word` still means the same."""
    return [one for path in _files(word) for one in files.stamp(path)]


def _files(word: str) -> list[str | Path]:
    if _function(word) or is_rankings(word):
        return [word.rpartition(":")[0] or word]
    found = JUDGE.fullmatch(word) or SECTION.fullmatch(word)
    if not found and not _is_recipe(word):
        return [reward_at(word)]
    recipe = load_recipe(found[1] if found else word)
    code = (spec.rpartition(":")[0] for stage in recipe.stages for spec in user_code(recipe, stage).values())
    made = (model_dir(recipe, stage) for stage in REWARD_STAGES)
    return [find_recipe(found[1] if found else word), *code, *made]


def _function(word: str) -> str | None:
    """The name of the function that is meant, None where none is."""
    place, colon, name = word.rpartition(":")
    meant = colon and name.isidentifier() and (place.endswith(".py") or re.fullmatch(r"[\w.]+", place))
    return name if meant and not (SECTION.fullmatch(word) or JUDGE.fullmatch(word)) else None


def _is_recipe(word: str) -> bool:
    path = typed_path(word)
    if path.suffix == ".py":
        raise RewardError(f"{word} is a file of functions: name one of them, as in {word}:NAME")
    return path.is_file() or (path.suffix in (".yaml", ".yml")) or (word in shipped_recipes() and not path.exists())


def _section(recipe: Recipe) -> str:
    stage = next((name for name in SAMPLING if getattr(recipe, name) is not None), None)
    if stage is None:
        raise RecipeError([f"has no section with a reward ({' or '.join(SAMPLING)})"], recipe.name)
    return stage


def _parts(recipe: Recipe, stage: str, key: str) -> list[RewardPart]:
    """The parts of a section's reward; none where a stage makes it."""
    parts = getattr(getattr(recipe, stage, None) if stage in SAMPLING else None, key, None)
    if parts is None or (key != "reward" and not parts):
        raise RecipeError([f"{stage}.{key}: the recipe has no such reward"], recipe.name)
    return parts


def _of_recipe(recipe: Recipe, stage: str, key: str, device: Any) -> NamedReward:
    from align.stages.rewards import build_reward

    tokenizer = _counting(recipe, stage, plain_parts(_parts(recipe, stage, key)))
    reward = build_reward(recipe, tokenizer, stage=stage, key=key, device=device)
    return NamedReward(reward, getattr(recipe, stage).on_reward_error)


def _judge_of_recipe(recipe: Recipe, stage: str, folder: Path, device: Any) -> Judge:
    from align.stages.judges import recipe_judge

    _require_judge(recipe, stage)
    tokenizer = _counting(recipe, stage, getattr(recipe, stage).judge_parts())
    return recipe_judge(recipe, tokenizer, stage=stage, out_dir=folder, device=device)


def _require_judge(recipe: Recipe, stage: str) -> None:
    if getattr(getattr(recipe, stage, None) if stage in SAMPLING else None, "judge", None) is None:
        raise RecipeError([f"{stage}.judge: the recipe names no judge"], recipe.name)


def _counting(recipe: Recipe, stage: str, parts: Iterable[tuple[str, RewardPart]]) -> Any:
    """The policy's tokenizer where lengths in tokens need it, else None: the policy may not be there."""
    from align.models.tokenizer import recipe_tokenizer
    from align.stages.common import origin_path

    if not any(isinstance(part, LengthPart) and part.unit == "tokens" for _, part in parts):
        return None
    return recipe_tokenizer(origin_path(recipe, init_origin(recipe, stage), stage=stage), recipe.model)
