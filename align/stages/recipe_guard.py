"""Whether what lies in a stage's folder was made with this recipe, or with one that differs in its length alone.

What a stage makes depends on its own section, on the sections of the stages it starts from, and on seed, model, data
root and world. Keys that only say how often to log, save or evaluate, on how much, or how a batch is cut, do not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.recipe import STAGES, Recipe
from align.recipe.lineage import code_hashes, inputs, stage_dir, user_code
from align.recipe.rounds import ROUND
from align.recipe.sources import SAMPLED_FROM, world_dir
from align.runs import checkpoint
from align.runs.acceptance import accepted, is_accepted
from align.runs.reading import read_recipe
from align.runtime.errors import AlignError
from align.runtime.files import write_json
from align.runtime.json_files import RunFileError, read_object
from align.runtime.secrets import hide
from align.runtime.terminal import shortened
from align.stages.common import CODE, MADE_BY_STAGES, read_summary

ADAPTERS = ("adapter", "lora", "quantization")
COMMON = ("seed", "data_root", "model", "tinyworld")
HARMLESS = frozenset(
    {"logging_steps", "save_steps", "save_total_limit", "eval_steps", "log_samples", "every_steps"}
    | {"max_row_mb"}  # of a source
    | {"num_samples", "eval_num_replies", "evaluation.limit"}
    | {"micro_batch_size", "micro_batch_tokens", "eval_batch_size", "ptx_micro_batch_size"}
    | {"timeout", "attempts", "backoff", "api_key_env"}  # of a reward's endpoint
    | {"workers", "total_seconds"}  # of a reward's sandboxes
    | {"on_reward_error"}  # decides only what would have stopped the run
    | {"judge"}  # says what a model is worth, and makes none
    | {"memory_share", "kv_cache_gib", "max_num_seqs", "sleep", "probe_tolerance"}  # of vLLM
    | {"urls", "start_timeout", "request_timeout", "max_restarts", "rollout.batch_size"}
)
NAMED = ("weights",)  # of a mixture, whose keys are names of the user's: a new one is a change too
ENDLESS = ("constant", "constant_with_warmup")  # schedules that do not depend on how many steps there will be
UNITS = {"num_iterations": "iterations", "max_steps": "steps", "num_train_epochs": "epochs", "num_rounds": "rounds"}
NOTES = ("recipe.yaml", "accepted.json", CODE)  # written before a stage begins
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
    return [one for one in _unknown(differences(recipe, stage, folder), folder) if not is_accepted(one.key)]


def accepted_changes(recipe: Recipe, stage: str, folder: Path) -> list[Change]:
    """Those of the keys that differ whose change this command accepts, and none before did. Raises RunFileError."""
    return [one for one in _unknown(differences(recipe, stage, folder), folder) if is_accepted(one.key)]


def _unknown(found: list[Change], folder: Path) -> list[Change]:
    """Those that `folder` has not noted as accepted."""
    known = [(one.get("key"), one.get("is")) for one in accepted(folder)] if found else []
    return [one for one in found if (one.key, one.now) not in known]


def collected_otherwise(recipe: Recipe, folder: Path) -> list[Change]:
    """Every key that decides what a round's replies are and who judges them, and differs from `folder/recipe.yaml`, but
    for what was accepted before.

    Args:
        recipe: the round's, with the `rounds` that it is one of.

    Raises:
        RunFileError: the file is damaged.
    """
    try:
        saved, now = _saved(recipe, folder), recipe.model_dump(mode="json")
    except RunFileError as error:
        raise RunFileError(
            f"{error}: put it back, or start the round anew with --fresh {folder.parent.name}"
        ) from error
    found: list[Change] = []
    for key in (*COMMON, "collect"):
        if key in saved:
            _compare(key, saved[key], now[key], found)
    _compare("rounds.judge", (saved.get("rounds") or {}).get("judge"), now["rounds"]["judge"], found)
    return _unknown(found, folder)


def differences(recipe: Recipe, stage: str, folder: Path) -> list[Change]:
    """Every key that matters to `stage` and differs from `folder/recipe.yaml`. Raises RunFileError."""
    try:
        saved = _saved(recipe, folder)
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


def _saved(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The values of `folder/recipe.yaml`. A round's recipe names by their paths what lies in its run; where the run was
    moved since, these are as they are now. Raises RunFileError."""
    saved = read_recipe(folder / "recipe.yaml")
    was, now = Path(str(saved.get("output_dir"))), Path(recipe.output_dir)
    is_moved = ROUND.fullmatch(now.name) and was.name == now.name and was != now
    return _moved(saved, str(was.parent), now.parent) if is_moved else saved


def _moved(value: Any, was: str, now: Path) -> Any:
    if isinstance(value, dict):
        return {key: _moved(one, was, now) for key, one in value.items()}
    if isinstance(value, list):
        return [_moved(one, was, now) for one in value]
    head, found, tail = value.partition(f"{was}/") if isinstance(value, str) else (value, "", "")
    if not found or (head and not head.startswith("/")):
        return value
    return str((now.absolute() if head else now) / tail)


def changed_code(recipe: Recipe, stage: str) -> list[Change]:
    """The files of user code that the stage was made with and that hold something else now. They are told, and nothing
    is done about it: a file may be mended while a stage goes on, and an edit may mean nothing. Raises RunFileError."""
    saved = read_object(stage_dir(recipe, stage) / CODE, "remove it") or {}
    specs, now = user_code(recipe, stage), code_hashes(recipe)
    changed = [key for key in specs if key in saved and key in now and saved[key] != now[key]]
    names = {key: specs[key].rpartition("/")[2] for key in changed}
    return [Change(key, f"{names[key]} of {saved[key]}", f"{names[key]} of {now[key]}") for key in changed]


def _compare(key: str, was: Any, now: Any, found: list[Change]) -> None:
    if isinstance(was, dict) and isinstance(now, dict) and key.rpartition(".")[2] not in NAMED:
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


@dataclass(frozen=True, slots=True)
class Longer:
    """`checkpoint` is the step (for rejection the round) it goes on from, None where none is left."""

    stage: str
    change: Change
    checkpoint: int | None
    schedules: tuple[str, ...]

    def __str__(self) -> str:
        """What the user is told."""
        unit = UNITS[self.change.key.rpartition(".")[2]]
        where = "step" if unit == "epochs" else unit.removesuffix("s")
        told = (
            f"{self.stage}: goes on from {where} {self.checkpoint} to {_shown(self.change.now)} {unit} ({self.change})"
        )
        if not self.schedules:
            return f"{told}, as a run of that length from the start would"
        is_now = "is now that" if len(self.schedules) == 1 else "are now those"
        return (
            f"{told}; the {' and the '.join(self.schedules)} {is_now} of the new length, while the {unit} "
            "so far had that of the old one: a run of the new length from the start would end elsewhere "
            f"(--fresh {self.stage} makes it)"
        )


def needs(one: Longer | None) -> str:
    """Why a stage that is to be longer starts anew after all."""
    return "; no checkpoint of it is left to go on from" if one is not None else ""


def longer(recipe: Recipe, stage: str, changed: list[Change]) -> Longer | None:
    """Where the stage goes on when nothing but its length changed, and not to fewer steps than are done; else None."""
    if len(changed) != 1:
        return None
    (change,) = changed
    section, _, name = change.key.partition(".")
    if section != stage or name not in getattr(recipe, stage).lengths:
        return None
    done = _newest(recipe, stage, name)
    if not _grows(recipe, stage, name, change, done):
        return None
    kinds = [one.lr_scheduler_type for one in getattr(recipe, stage).optimizers().values()]
    ending = dict.fromkeys(kind for kind in kinds if kind not in ENDLESS and name != "num_rounds")  # each has its own
    schedules = [f"{kind} learning rate" for kind in ending]
    mixture = getattr(getattr(recipe, stage), "mixture", None)
    schedules += ["annealed mixture"] if mixture is not None and mixture.anneal else []
    return Longer(stage, change, done, tuple(schedules))


def _newest(recipe: Recipe, stage: str, name: str) -> int | None:
    folder = stage_dir(recipe, stage)
    if name == "num_rounds":
        done = [int(one.parent.name) for one in folder.glob("rounds/*/summary.json") if one.parent.name.isdecimal()]
        return max(done, default=None)
    newest = checkpoint.latest(folder / "checkpoints")
    return None if newest is None else checkpoint.step_of(newest)


def _grows(recipe: Recipe, stage: str, name: str, change: Change, done: int | None) -> bool:
    if change.now is None:
        return False  # from a number of steps to epochs, whose steps are not known here
    was = change.was
    if was is None:  # from epochs to a number of steps
        was = (read_summary(stage_dir(recipe, stage)) or {}).get("steps", done)
    if not isinstance(was, int | float) or change.now > was:
        return True
    return name != "num_train_epochs" and not is_finished(recipe, stage) and change.now >= (done or 0)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
