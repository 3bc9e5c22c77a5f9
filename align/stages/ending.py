"""For how long a stage trains, in words, and what it means that it ended before its last step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from align.recipe.epochs import in_epochs, too_many_epochs
from align.recipe.section import StageSection
from align.runs.early_stopping import EarlyStopping
from align.runtime.json_files import read_object
from align.runtime.ranks import is_main
from align.stages.common import LOG


def tell_epochs(stage: str, section: StageSection, steps: int, epochs: float, rows: int, **words: str) -> None:
    """Say how many epochs of the `rows` so many steps are, and warn of more than are known to help."""
    if is_main():
        LOG.info("%s: %s", stage, in_epochs(steps, epochs, rows, **words))
        if told := too_many_epochs(section, epochs):
            LOG.warning("%s: %s", stage, told)


def tell_mixture(stage: str, section: StageSection, drawn: dict[str, Any]) -> None:
    """Say what a mixture takes of each part over the whole training, and warn of parts that come too often."""
    if not is_main():
        return
    for name, part in drawn["parts"].items():
        told = f"{part['drawn']:,} of {part['rows']:,} rows ({part['share']:.1%} of the training)"
        LOG.info("%s: %s: %s", stage, name, told)
        if warning := too_many_epochs(section, part["epochs"]):
            LOG.warning("%s: %s: %s", stage, name, warning)


def early_stopping(section: StageSection, after: int = 0) -> list[EarlyStopping]:
    """The callback that the section asks for, or none; evaluations up to the step `after` are not waited for."""
    return [] if section.early_stopping is None else [EarlyStopping(section.early_stopping, section.stopped_by, after)]


def logged(checkpoint: Path) -> list[dict[str, Any]]:
    """What the run that wrote a checkpoint had logged."""
    return (read_object(checkpoint / TRAINER_STATE_NAME, "remove it") or {}).get("log_history", [])


def ended_early(state: TrainerState, early: Sequence[EarlyStopping]) -> dict[str, str]:
    """For the summary: why a stage that nobody interrupted ended before its last step; nothing where it did not."""
    if state.global_step >= state.max_steps:
        return {}
    why = next((one.reason for one in early if one.reason), "a callback ended it")
    return {"stopped_early": f"{why}; step {state.global_step} of {state.max_steps}"}
