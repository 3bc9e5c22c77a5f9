"""The outer loop of a trainer that learns in iterations, driving transformers' callbacks.

`TrainerCallback` objects get the standard events with the standard arguments. One *step* of `TrainerState`, and of
logging, evaluating and saving, is one iteration (sampling and all its optimizer steps): PPO has no smaller boundary at
which it could be continued. `should_log`, `should_evaluate`, `should_save` and `should_training_stop` are respected.

The model of the best evaluation (`evaluation.save_best`) lies in `best/model`. It belongs to the run, not to a
checkpoint: a run that resumes before that evaluation comes to it again, with the same weights.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, ExportableState

from align.recipe.ppo_section import PPOConfig
from align.runs.checkpoint import latest
from align.runs.metrics import MetricsLog
from align.runs.proof import reset_process_state
from align.runtime.ranks import any_rank
from data_formats.errors import EmptyDatasetError

LOG = logging.getLogger(__name__)
BEST_METRIC, BEST_MODEL = "eval/score", Path("best", "model")


def loop_arguments(
    section: PPOConfig, output_dir: Path, evaluates: bool, seed: int, accelerator: Accelerator
) -> TrainingArguments:
    """The `args` that callbacks see; steps are iterations.

    Raises:
        EmptyDatasetError: the best model is to be kept, but there are no held-out prompts to choose it by.
    """
    if section.evaluation.save_best and not evaluates:
        raise EmptyDatasetError("evaluation.save_best: there are no held-out prompts to choose by; give eval_prompts")
    regularly = evaluates and section.evaluation.every_steps is not None
    return TrainingArguments(
        output_dir=str(output_dir),
        max_steps=section.num_iterations,
        logging_steps=section.logging_steps,
        logging_first_step=True,
        eval_strategy="steps" if regularly else "no",
        eval_on_start=evaluates,
        eval_steps=section.evaluation.every_steps,
        save_strategy="steps" if section.save_steps else "no",
        save_steps=section.save_steps or 500,
        save_total_limit=section.save_total_limit,
        metric_for_best_model=BEST_METRIC if section.evaluation.save_best else None,
        greater_is_better=True,
        learning_rate=section.policy.learning_rate,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        use_cpu=accelerator.device.type == "cpu",
        accelerator_config={"use_configured_state": True},  # or it would reset the accelerator's state
    )


class IterationLoop:
    """Events, logging, saving and stopping around `step()`.

    Subclasses give `step() -> metrics`, `evaluate() -> metrics`, `save_model(folder)`, `save_checkpoint()` and
    `load_checkpoint(folder)`.
    """

    accelerator: Accelerator
    args: TrainingArguments
    state: TrainerState
    control: TrainerControl
    output_dir: Path

    def _set_up_loop(
        self, callbacks: Sequence[TrainerCallback], model: Any, processing_class: Any, optimizer: Any, schedule: Any
    ):
        self.control = TrainerControl()
        self.state = TrainerState(
            max_steps=self.args.max_steps,
            logging_steps=int(self.args.logging_steps),
            eval_steps=int(self.args.eval_steps or 0),
            save_steps=int(self.args.save_steps),
            is_local_process_zero=self.accelerator.is_local_main_process,
            is_world_process_zero=self.accelerator.is_main_process,
        )
        self.callback_handler = CallbackHandler(
            [DefaultFlowCallback(), *callbacks], model, processing_class, optimizer, schedule
        )
        self.metrics_log = MetricsLog(self.output_dir / "metrics.jsonl")
        self.samples_log = MetricsLog(self.output_dir / "samples.jsonl")
        self.pending_samples: list[dict[str, Any]] = []
        self._event("on_init_end")

    def _event(self, name: str, **kwargs: Any) -> None:
        self.control = getattr(self.callback_handler, name)(self.args, self.state, self.control, **kwargs)

    def _callback_states(self) -> dict[str, Any]:
        """What the callbacks that have a state (transformers' `ExportableState`) want kept in a checkpoint."""
        found = [one for one in self.callback_handler.callbacks if isinstance(one, ExportableState)]
        return {type(one).__name__: one.state() for one in found}

    def _restore_callbacks(self) -> None:
        for callback in self.callback_handler.callbacks:
            saved = self.state.stateful_callbacks.get(type(callback).__name__)
            if saved is not None and isinstance(callback, ExportableState):
                for name, value in saved.get("attributes", {}).items():
                    setattr(callback, name, value)

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a transformers callback."""
        self.callback_handler.add_callback(callback)

    @property
    def checkpoint_dir(self) -> Path:
        """Where `step-N` folders lie."""
        return self.output_dir / "checkpoints"

    def train(self, resume_from_checkpoint: str | Path | bool | None = None) -> TrainerState:
        """Run the iterations that are left.

        Args:
            resume_from_checkpoint: a `step-N` folder, or True for the newest whole one of this run (none there: start).
        """
        reset_process_state(self.accelerator)
        folder = latest(self.checkpoint_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        if folder:
            self.load_checkpoint(Path(folder))
            self._restore_callbacks()
            self._require_best()
        continues = bool(folder) or self.state.global_step > 0  # or called a second time
        if self.accelerator.is_main_process:  # lines that a stopped run wrote past its checkpoint
            kept = self.state.global_step if continues else -1
            self.metrics_log.keep_until(kept, sum(line["step"] == kept for line in self.state.log_history))
            self.samples_log.keep_until(kept)
        self._event("on_train_begin")
        if self.args.eval_on_start and not continues:
            self.look()
        if folder and self._misses_evaluation():
            self.look()
        while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self._event("on_step_begin")
            metrics = self.step()
            self.state.global_step += 1
            self._event("on_step_end")
            self._after_step(metrics)
            self.control.should_training_stop = any_rank(self.control.should_training_stop)  # clocks differ
        self._event("on_train_end")
        return self.state

    def _after_step(self, metrics: dict[str, float]) -> None:
        if self.control.should_log:
            self.log(metrics)
            if self.accelerator.is_main_process:
                for row in self.pending_samples:
                    self.samples_log.append({"step": self.state.global_step, **row})
        if self.control.should_evaluate:
            self.look()
        if self.control.should_save:
            self.save_checkpoint()
            self._event("on_save")

    def _require_best(self) -> None:
        """Make the best model again where somebody removed it and it is the one of this step; else forget it aloud."""
        step = self.state.best_global_step
        if self.state.best_metric is None or (self.output_dir / BEST_MODEL).is_dir():
            return
        if step == self.state.global_step:
            self.save_model(self.output_dir / BEST_MODEL)
            return
        if self.accelerator.is_main_process:
            LOG.warning(
                "%s is gone: the model of step %s (%s %.4g) cannot be had again, so the best is chosen among those "
                "after step %d (--fresh starts the stage anew)",
                self.output_dir / BEST_MODEL,
                step,
                BEST_METRIC,
                self.state.best_metric,
                self.state.global_step,
            )
        self.state.best_metric = self.state.best_model_checkpoint = None
        self.state.best_global_step = 0

    def _misses_evaluation(self) -> bool:
        """Whether the evaluation that was due at this checkpoint had failed."""
        step = self.state.global_step
        due = self.args.eval_strategy == "steps" and step and step % int(self.args.eval_steps) == 0
        at_step = (line for line in self.state.log_history if line["step"] == step)
        return bool(due) and not any(name.startswith("eval/") for line in at_step for name in line)

    def look(self) -> None:
        """Evaluate and log; keep the model when it is the best so far and the best is asked for. Every rank calls it.

        Raises:
            StorageError: the disk is full or not writable; the best before is intact.
        """
        figures = self.evaluate()
        self.log(figures)
        self._event("on_evaluate", metrics=figures)
        wanted, best = self.args.metric_for_best_model, self.state.best_metric
        if wanted is not None and (best is None or figures[wanted] > best):
            self.save_model(self.output_dir / BEST_MODEL)
            self.state.best_metric, self.state.best_global_step = figures[wanted], self.state.global_step
            self.state.best_model_checkpoint = str(self.output_dir / BEST_MODEL)

    def log(self, metrics: dict[str, float]) -> None:
        """Give `metrics` to history, callbacks and metrics.jsonl."""
        line = {"step": self.state.global_step, **metrics}
        self.state.log_history.append(line)
        self._event("on_log", logs=dict(metrics))
        if self.accelerator.is_main_process:
            self.metrics_log.append(line)

    def step(self) -> dict[str, float]:
        """One iteration; returns its metrics."""
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Figures on held-out inputs."""
        raise NotImplementedError

    def save_model(self, folder: str | Path) -> None:
        """Write the model as a folder that can be loaded, atomically."""
        raise NotImplementedError

    def save_checkpoint(self) -> Path:
        """Write everything that `load_checkpoint` needs."""
        raise NotImplementedError

    def load_checkpoint(self, folder: Path) -> None:
        """Continue as if never stopped."""
        raise NotImplementedError
