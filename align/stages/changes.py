"""Whether what lies in a stage's folder was made with this recipe.

What a stage makes depends on its own section, on the sections of the stages it starts from, and on seed, model, data
root and world. Keys that only say how often to log, save or evaluate, on how much, or how a batch is cut, do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.recipe import STAGES, Recipe
from align.recipe.lineage import inputs, stage_dir
from align.recipe.sources import SAMPLED_FROM, world_dir
from align.runs.acceptance import accepted, is_accepted
from align.runs.reading import read_recipe
from align.runtime.files import write_json
from align.runtime.json_files import RunFileError, read_object
from align.runtime.secrets import hide
from align.runtime.terminal import shortened
from align.stages.common import MADE_BY_STAGES
from data_formats.errors import AlignError

ADAPTERS = ("adapter", "lora", "quantization")
COMMON = ("seed", "data_root", "model", "tinyworld")
HARMLESS = frozenset(
    {"logging_steps", "save_steps", "save_total_limit", "eval_steps", "log_samples", "every_steps"}
    | {"max_row_mb"}  # of a source
    | {"num_samples", "eval_num_replies", "evaluation.limit"}
    | {"micro_batch_size", "eval_batch_size", "ptx_micro_batch_size"}
    | {"timeout", "attempts", "backoff", "api_key_env"}  # of a reward's endpoint
    | {"on_reward_error"}  # decides only what would have stopped the run
    | {"memory_share", "kv_cache_gib", "max_num_seqs", "sleep", "probe_tolerance"}  # of vLLM
    | {"urls", "start_timeout", "request_timeout", "max_restarts", "rollout.batch_size"}
)
NOTES = ("recipe.yaml", "accepted.json")  # written before a stage begins
SHOWN = 8
WORLD_STAMP = "world.json"


class RecipeChangedError(AlignError, ValueError):
    """A folder holds the work of another recipe."""


def ancestors(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """`stage` and every stage of the recipe that it builds on, in running order."""
    found, todo = {stage}, [stage]
    while todo:
        now = todo.pop()
        if getattr(recipe, now) is None:
            continue
        parents = {origin.value for origin in inputs(recipe, now).values() if origin.kind == "stage"}
        if recipe.tinyworld is not None and STAGES[now].records == "Comparison":
            parents |= SAMPLED_FROM
        todo += sorted(parents - found)
        found |= parents
    return tuple(name for name in STAGES if name in found)


def descendants(recipe: Recipe, stages: tuple[str, ...]) -> tuple[str, ...]:
    """`stages` and every stage of the recipe that builds on one of them, in running order."""
    return tuple(name for name in STAGES if name in stages or _builds_on(recipe, name, stages))


def _builds_on(recipe: Recipe, stage: str, stages: tuple[str, ...]) -> bool:
    return getattr(recipe, stage) is not None and bool(set(ancestors(recipe, stage)) & set(stages))


@dataclass(frozen=True, slots=True)
class Change:
    """A key of the recipe (`ppo.kl_coef`) that is not what a stage was made with."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} was {_short(self.was)}, is {_short(self.now)}"


def changes(recipe: Recipe, stage: str, folder: Path) -> list[Change]:
    """Every key that matters to `stage` and differs from `folder/recipe.yaml`, but for what is or was accepted.

    Raises:
        RunFileError: the file is damaged.
    """
    found = differences(recipe, stage, folder)
    known = [(one.get("key"), one.get("is")) for one in accepted(folder)] if found else []
    return [one for one in found if not is_accepted(one.key) and (one.key, one.now) not in known]


def accepted_changes(recipe: Recipe, stage: str, folder: Path) -> list[Change]:
    """Those of the keys that differ whose change this command accepts, and none before did. Raises RunFileError."""
    found = [one for one in differences(recipe, stage, folder) if is_accepted(one.key)]
    known = [(one.get("key"), one.get("is")) for one in accepted(folder)] if found else []
    return [one for one in found if (one.key, one.now) not in known]


def differences(recipe: Recipe, stage: str, folder: Path) -> list[Change]:
    """Every key that matters to `stage` and differs from `folder/recipe.yaml`. Raises RunFileError."""
    try:
        saved = read_recipe(folder / "recipe.yaml")
    except RunFileError as error:
        advice = f"nobody knows what '{stage}' was made with; put it back, or start it anew with --fresh {stage}"
        raise RunFileError(f"{error}: {advice}") from error
    now = recipe.model_dump(mode="json")
    if not STAGES[stage].adapted:
        now["model"] = {key: value for key, value in now["model"].items() if key not in ADAPTERS}
    found: list[Change] = []
    for key in (*COMMON, *ancestors(recipe, stage)):
        if key in saved:
            _compare(key, saved[key], now[key], found)
    return found


def _compare(key: str, was: Any, now: Any, found: list[Change]) -> None:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in now:
            harmless = HARMLESS & {name, f"{key.rpartition('.')[2]}.{name}"}
            if name in was and not harmless:
                _compare(f"{key}.{name}", was[name], now[name], found)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for index, (old, new) in enumerate(zip(was, now, strict=True)):
            _compare(f"{key}.{index}", old, new, found)
    elif was != now and (not isinstance(was, str) or hide(was) != now):  # now is as it would be written
        found.append(Change(key, was, now))


def _short(value: Any) -> str:
    return shortened("absent" if value is None else hide(str(value)))


def is_finished(recipe: Recipe, stage: str) -> bool:
    """Whether the stage has written its summary, the last file of all."""
    return (stage_dir(recipe, stage) / "summary.json").is_file()


def is_begun(recipe: Recipe, stage: str) -> bool:
    """Whether the stage has written anything besides what it notes before it starts."""
    folder = stage_dir(recipe, stage)
    return any((folder / name).exists() for name in MADE_BY_STAGES if name not in NOTES)


def some(problems: list[str]) -> str:
    problems = list(dict.fromkeys(problems))
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def stamp_world(recipe: Recipe) -> None:
    """Write `world/world.json`: what the sets of the embedded world depend on."""
    write_json(world_dir(recipe) / WORLD_STAMP, _world(recipe))


def require_same_world(recipe: Recipe) -> None:
    """Raises RecipeChangedError when the sets in `world/` were made with another seed or other sizes."""
    file = world_dir(recipe) / WORLD_STAMP
    found: list[Change] = []
    saved = read_object(file, "start the whole chain anew with `align run RECIPE --fresh`")
    for key, now in _world(recipe).items() if saved is not None else ():
        _compare(key, saved.get(key), now, found)
    if found:
        raise RecipeChangedError(
            f"{world_dir(recipe)} holds the sets of another world ({some(list(map(str, found)))}): "
            "start the whole chain anew with `align run RECIPE --fresh`, or choose another output_dir"
        )


def _world(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", include={"seed", "tinyworld"})
