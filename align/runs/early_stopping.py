"""Ending a stage whose evaluations have become no better for a while.

What was evaluated so far is in the trainer's log, which every checkpoint holds: there is no state beside it, and a run
that resumes comes to the same end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

from transformers import TrainerCallback

from align.recipe.section import EarlyStoppingSection
from align.runs.errors import TrainingError

LOG = logging.getLogger("align")


def reason_to_end(
    lines: Iterable[dict[str, Any]], metric: str, section: EarlyStoppingSection, after: int = 0
) -> str | None:
    """Why the last `patience` evaluations among the logged `lines` end the stage, in words; None: they do not.

    A figure that is not finite is no better than any. Evaluations up to the step `after` are not waited for.
    """
    sign = -1.0 if metric.endswith("loss") else 1.0
    best, at, waited = None, None, 0
    for line in lines:
        value = line.get(metric)
        if metric not in line:
            continue
        better = isinstance(value, int | float) and math.isfinite(value)
        if better and (best is None or sign * value > sign * best + section.min_delta):
            best, at, waited = value, line.get("step"), 0
        elif line.get("step", 0) > after or best is None:
            waited += 1
    if waited < section.patience:
        return None
    than = "has never been finite" if best is None else f"has not become better than {best:.4g} (step {at})"
    return f"{metric} {than} in {waited} evaluation{'s' if waited > 1 else ''}"


class EarlyStopping(TrainerCallback):
    """Ends training after an evaluation when there is a reason; saves a checkpoint then where checkpoints are saved.

    Args:
        section: how long to wait for what.
        metric: where the section names none.
        after: the last step before which nothing is trained that is evaluated.

    Attributes:
        reason: why it ended, in words.
    """

    def __init__(self, section: EarlyStoppingSection, metric: str, after: int = 0):
        self.section, self.metric, self.after = section, section.metric or metric, after
        self.reason: str | None = None

    def verdict(self, lines: Iterable[dict[str, Any]]) -> bool:
        """Whether these logged lines end the stage."""
        self.reason = reason_to_end(lines, self.metric, self.section, self.after)
        return self.reason is not None

    def on_train_begin(self, args, state, control, **kwargs):
        if self.verdict(state.log_history):  # resumed where it had ended
            control.should_training_stop = True

    def on_evaluate(self, args, state, control, **kwargs):
        known = {name for line in state.log_history if line["step"] == state.global_step for name in line}
        if self.metric not in known:
            logged = ", ".join(sorted(name for name in known if name.startswith("eval") and "_per_" not in name))
            raise TrainingError(f"early_stopping.metric: no evaluation logs '{self.metric}'; they log {logged}")
        if state.global_step < state.max_steps and self.verdict(state.log_history):
            LOG.info("ends at step %d of %d: %s", state.global_step, state.max_steps, self.reason)
            control.should_training_stop = True
            control.should_save = args.save_strategy != "no"
