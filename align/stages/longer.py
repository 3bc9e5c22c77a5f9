"""A stage that is to take more steps than it was begun with: from which checkpoint it goes on, and what that means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from align.recipe import Recipe
from align.recipe.lineage import stage_dir
from align.runs import checkpoint
from align.stages.changes import Change, is_finished
from align.stages.common import read_summary

ENDLESS = ("constant", "constant_with_warmup")  # schedules that do not depend on how many steps there will be
UNITS = {"num_iterations": "iterations", "max_steps": "steps", "num_train_epochs": "epochs", "num_rounds": "rounds"}


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
        return (
            f"{told}; the {' and '.join(self.schedules)} learning rate is now that of the new length, while the {unit} "
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
    return Longer(stage, change, done, tuple(ending))


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
