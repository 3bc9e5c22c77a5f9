"""What the stages share with the rest of a run: metrics.jsonl, trackers, progress, Ctrl-C, finite losses.

`attach` puts them on a trainer and takes its own printing off; `stage_callbacks` only makes them. Written against
transformers 5.19: `on_step_end` comes before logging, evaluating and saving of the same step, so a flag set there still
saves; `on_pre_optimizer_step` comes after clipping and before the weights move, so a gradient found broken there has
not yet broken the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from align.recipe.schema import Recipe
from align.recipe.trackers import SENDING
from align.runs.errors import TrainingError
from align.runs.interrupt import StopFlag
from align.runs.metrics import MetricsLog, recorded
from align.runs.progress import StageProgress
from align.runs.proof import StepProof, local
from align.runs.trackers import Trackers, warn_of
from align.runtime.ranks import any_rank

_NOT_FIGURES = ("epoch", "total_flos", "step", "time")
_NOT_FIGURES_END = ("_runtime", "_per_second")


class MetricsCallback(TrainerCallback):
    """Writes what the trainer logs to metrics.jsonl, one line {"step", "time", ...} a log.

    When training begins, lines after the step it begins at are dropped: a resumed run writes them again.
    """

    def __init__(self, log: MetricsLog):
        self.log = log

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            step = state.global_step  # at 0 nothing is resumed, and what was logged before training stays
            self.log.keep_until(step, sum(line["step"] == step for line in state.log_history) if step else None)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            self.log.append({"step": state.global_step, **recorded(logs)})


class TrackerCallback(TrainerCallback):
    """Sends every log of a trainer, as metrics.jsonl has it."""

    def __init__(self, trackers: Trackers):
        self.trackers = trackers

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            self.trackers.send(state.global_step, recorded(logs))


def tracker_callbacks(recipe: Recipe, out_dir: Path) -> list[TrainerCallback]:
    """What sends the logs of the trainer whose files lie in `out_dir`."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    found: list[TrainerCallback] = [TrackerCallback(Trackers(recipe, out_dir))] if recipe.report_to else []
    for name in dict.fromkeys(recipe.report_to):
        if name not in SENDING:
            try:
                found.append(_harmless(name, INTEGRATION_TO_CALLBACK[name]()))
            except Exception as error:
                warn_of(name, error)
    return found


def _harmless(name: str, callback: TrainerCallback) -> TrainerCallback:
    """A callback whose first failure is told and its last: none of its events is called after it."""
    failed = False

    def kept(event: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal failed
            try:
                return None if failed else event(*args, **kwargs)
            except Exception as error:
                failed = True
                warn_of(name, error)

        return call

    for event in dir(callback):
        if event.startswith("on_"):
            setattr(callback, event, kept(getattr(callback, event)))
    return callback


class StageProgressCallback(TrainerCallback):
    """Shows the stage's progress with the figures of the last log.

    Args:
        stage: the name shown.
        names: which figures, in this order; None takes the first four of a log.
        start: steps done before this run.
        options: further arguments of `StageProgress`.
    """

    def __init__(self, stage: str, names: tuple[str, ...] | None = None, start: int = 0, **options: Any):
        self.stage, self.names, self.start, self.options = stage, names, start, options
        self._progress: StageProgress | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.close()
        start = max(self.start, state.global_step)
        self.options.setdefault("enabled", state.is_world_process_zero)
        self._progress = StageProgress(self.stage, state.max_steps, start=start, **self.options).__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        if self._progress is not None:
            self._progress.update(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._progress is None or not logs or "train_runtime" in logs:
            return
        names = self.names if self.names is not None else [name for name in logs if _is_figure(name)][:4]
        self._progress.update(state.global_step, **{name: logs[name] for name in names if name in logs})

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Ends the bar; to be called as well when training ended by an error."""
        if self._progress is not None:
            self._progress.__exit__()
            self._progress = None


def _is_figure(name: str) -> bool:
    return name not in _NOT_FIGURES and not name.endswith(_NOT_FIGURES_END)


class StopCallback(TrainerCallback):
    """Saves and stops after the step in which any rank was asked to stop."""

    def __init__(self, flag: StopFlag):
        self.flag = flag

    def on_step_end(self, args, state, control, **kwargs):
        if any_rank(self.flag.is_set()):
            self.flag.set()  # so that every rank knows why it stopped
            if state.global_step < state.max_steps:
                control.should_training_stop = True
                control.should_save = True


class FiniteCallback(TrainerCallback):
    """Ends training with a TrainingError when a loss or a gradient is not finite, before the weights take it.

    Args:
        save: called first, to keep the state of the last good step.
    """

    def __init__(self, save: Callable[[], None] | None = None):
        self.save = save

    def on_train_begin(self, args, state, control, **kwargs):
        args.logging_nan_inf_filter = False  # it would log the mean of earlier losses in place of a NaN

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        if getattr(optimizer, "scaler", None) is not None:  # a float16 scaler skips such steps itself
            return
        gradients = [local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)).tolist() if gradients else []
        if any_rank(not math.isfinite(sum(norms))):  # each knows its own shards
            self._fail("gradient", state.global_step + 1, save=True)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and not math.isfinite(logs.get("loss", 0.0)):
            self._fail("loss", state.global_step, save=False)  # the weights have already taken that step

    def _fail(self, what: str, step: int, save: bool) -> None:
        kept = ""
        if save and self.save is not None:
            self.save()
            kept = "; the state before it is saved"
        raise TrainingError(
            f"the {what} of step {step} is not finite{kept}: "
            "lower the learning rate or max_grad_norm, or look at the data"
        )


class ProofCallback(TrainerCallback):
    """Ends training with a TrainingError when an optimizer step trains nothing (`align.runs.proof`)."""

    def __init__(self) -> None:
        self._proof: StepProof | None = None

    @property
    def steps(self) -> int:
        """Steps that the optimizer has begun."""
        return 0 if self._proof is None else self._proof.steps

    def on_train_begin(self, args, state, control, **kwargs):
        self._proof = None

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self._proof = self._proof or StepProof(optimizer, "the model")
        self._proof.before()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self._proof.after()


def stage_callbacks(
    stage: str,
    out_dir: str | Path,
    flag: StopFlag | None = None,
    start: int = 0,
    *,
    save: Callable[[], None] | None = None,
    figures: tuple[str, ...] | None = None,
    metrics: bool = True,
    added: Sequence[TrainerCallback] = (),
    **progress_options: Any,
) -> list[TrainerCallback]:
    """The callbacks of a stage, in the order in which they have to be added.

    Args:
        stage: the name shown.
        out_dir: the stage's folder, where metrics.jsonl goes.
        flag: asks for a stop; the bar ends with its `with` block, also when training fails.
        start: steps done before this run.
        save: writes a checkpoint of the current state, for a non-finite gradient.
        figures: which logged figures the bar shows (default: the first four).
        metrics: False for trainers that write metrics.jsonl themselves.
        added: what the recipe adds.
        progress_options: further arguments of `StageProgress`.
    """
    progress = StageProgressCallback(stage, figures, start=start, **progress_options)
    callbacks: list[TrainerCallback] = [MetricsCallback(MetricsLog(Path(out_dir) / "metrics.jsonl"))] if metrics else []
    callbacks += [progress, FiniteCallback(save), *added]
    if flag is not None:
        flag.at_exit(progress.close)
        callbacks.append(StopCallback(flag))
    return callbacks


def attach(trainer: Trainer, stage: str, out_dir: str | Path, flag: StopFlag | None = None, **options: Any) -> None:
    """Puts `stage_callbacks` on `trainer`, which saves its state on a non-finite gradient, and takes transformers' own
    printing and bar off."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    options.setdefault("save", lambda: trainer._save_checkpoint(trainer.model, trial=None))
    for callback in stage_callbacks(stage, out_dir, flag, **options):
        trainer.add_callback(callback)
