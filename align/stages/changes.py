"""Whether what lies in a stage's folder was made with this recipe.

What a stage makes depends on its own section, on the sections of the stages it starts from, and on seed, model, data
root and world. Keys that only say how often to log, save or evaluate, on how much, or how a batch is cut, do not count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.recipe import STAGES, Recipe
from align.recipe.lineage import inputs, stage_dir
from align.recipe.sources import world_dir
from align.recipe.text import parse, read
from align.runs.files import write_json
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
    | {"memory_share", "kv_cache_gib", "max_num_seqs", "sleep", "probe_tolerance"}  # of vLLM
    | {"urls", "start_timeout", "request_timeout", "max_restarts"}
)
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
        if recipe.tinyworld is not None and now in ("pmp", "rm"):
            parents |= {"base", "sft"}  # the clean comparisons hold replies sampled from them
        todo += sorted(parents - found)
        found |= parents
    return tuple(name for name in STAGES if name in found)


def descendants(recipe: Recipe, stages: tuple[str, ...]) -> tuple[str, ...]:
    """`stages` and every stage of the recipe that builds on one of them, in running order."""
    return tuple(name for name in STAGES if name in stages or _builds_on(recipe, name, stages))


def _builds_on(recipe: Recipe, stage: str, stages: tuple[str, ...]) -> bool:
    return getattr(recipe, stage) is not None and bool(set(ancestors(recipe, stage)) & set(stages))


def changed_keys(recipe: Recipe, stage: str, folder: Path) -> list[str]:
    """ "key was X, is Y" for every key that matters to `stage` and differs from `folder/recipe.yaml`."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        return []
    saved, _ = parse(read(file, str(file)), str(file))
    saved = saved if isinstance(saved, dict) else {}
    now = recipe.model_dump(mode="json")
    if stage == "base":  # trains all weights, whatever these say
        now["model"] = {key: value for key, value in now["model"].items() if key not in ADAPTERS}
    found: list[str] = []
    for key in (*COMMON, *ancestors(recipe, stage)):
        if key in saved:
            _compare(key, saved[key], now[key], found)
    return found


def _compare(key: str, was: Any, now: Any, found: list[str]) -> None:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in now:
            harmless = HARMLESS & {name, f"{key.rpartition('.')[2]}.{name}"}
            if name in was and not harmless:
                _compare(f"{key}.{name}", was[name], now[name], found)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for index, (old, new) in enumerate(zip(was, now, strict=True)):
            _compare(f"{key}.{index}", old, new, found)
    elif was != now:
        found.append(f"{key} was {_short(was)}, is {_short(now)}")


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_finished(recipe: Recipe, stage: str) -> bool:
    """Whether the stage has written its summary, the last file of all."""
    return (stage_dir(recipe, stage) / "summary.json").is_file()


def is_begun(recipe: Recipe, stage: str) -> bool:
    """Whether the stage has written anything besides its recipe, which it overwrites when it starts."""
    folder = stage_dir(recipe, stage)
    return any((folder / name).exists() for name in MADE_BY_STAGES if name != "recipe.yaml")


def require_unchanged(recipe: Recipe, stages: tuple[str, ...]) -> None:
    """Raises RecipeChangedError when a stage was finished, or begun, with another recipe."""
    problems: list[str] = []
    for stage in stages:
        if is_begun(recipe, stage):
            problems += changed_keys(recipe, stage, stage_dir(recipe, stage))
    if problems:
        raise RecipeChangedError(
            f"{recipe.output_dir} holds stages made with another recipe ({_some(problems)}): "
            "give --fresh to start them anew, or choose another output_dir"
        )


def _some(problems: list[str]) -> str:
    problems = list(dict.fromkeys(problems))
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def stamp_world(recipe: Recipe) -> None:
    """Write `world/world.json`: what the sets of the embedded world depend on."""
    write_json(world_dir(recipe) / WORLD_STAMP, _world(recipe))


def require_same_world(recipe: Recipe) -> None:
    """Raises RecipeChangedError when the sets in `world/` were made with another seed or other sizes."""
    file = world_dir(recipe) / WORLD_STAMP
    problems: list[str] = []
    if file.is_file():
        saved = json.loads(file.read_text(encoding="utf-8"))
        for key, now in _world(recipe).items():
            _compare(key, saved.get(key), now, problems)
    if problems:
        raise RecipeChangedError(
            f"{world_dir(recipe)} holds the sets of another world ({_some(problems)}): "
            "start the whole chain anew with `align run RECIPE --fresh`, or choose another output_dir"
        )


def _world(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", include={"seed", "tinyworld"})
