"""What supervised training keeps beside transformers' own state: the sums of its figures in every checkpoint, so that a
resumed run logs what a whole one would, and a checkpoint of the last optimizer step where training fails.

`figures.json`: the sums that the next log line and the last one will be made of, a value a rank. A run that goes on
with another number of ranks logs the same of them; its random generators, from which dropout draws, begin anew.

A failure leaves that checkpoint whatever the exception was, as long as the weights are still as the step left them (a
forward pass, an evaluation, a callback). A run that resumes there makes up for the evaluation that failed. With several
ranks, which cannot tell one another here, the last checkpoint is what remains.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from align.runs.callbacks import ProofCallback
from align.runs.errors import TrainingError
from align.runtime.errors import StorageError
from align.runtime.json_files import read_object
from align.runtime.memory import memory_errors

logger = logging.getLogger(__name__)

FIGURES_FILE = "figures.json"
MEANS = ("loss", "total_loss", "last_logged")  # over ranks; the other figures are sums over them


def dealt(per_rank: list[dict[str, float]], ranks: int) -> list[dict[str, float]]:
    """The sums of some ranks for another number of them: means on every rank, sums on the first."""
    whole = {name: sum(own[name] for own in per_rank) for name in per_rank[0]}
    means = {name: whole[name] / len(per_rank) for name in whole if name in MEANS}
    return [whole | means, *({name: means.get(name, 0.0) for name in whole} for _ in range(ranks - 1))]


class Sums(TrainerCallback):
    """Keeps the sums of a trainer's figures over its checkpoints.

    Args:
        trainer: has `_sums_so_far()` and `_take_sums(...)`.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.resumed_from: Path | None = None
        self.other_ranks = False  # whether the checkpoint was written by another number of them
        self._at_boundary: dict[str, Any] | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._at_boundary, self.other_ranks = None, False
        if self.resumed_from is not None and (found := read_object(self.resumed_from / FIGURES_FILE, "")):
            per_rank, now = found["ranks"], args.world_size
            self.other_ranks = len(per_rank) != now
            if self.other_ranks:
                words = (len(per_rank), now)
                logger.info("saved on %d rank(s), going on with %d: what is drawn (dropout) is drawn anew", *words)
            mine = dealt(per_rank, now)[args.process_index] if self.other_ranks else per_rank[args.process_index]
            self.trainer._take_sums(mine)
        self.resumed_from = None

    def on_step_begin(self, args, state, control, **kwargs):
        self._at_boundary = self.trainer._sums_so_far()

    def on_step_end(self, args, state, control, **kwargs):
        self._at_boundary = None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "train_loss" in logs:  # the last line's: of the whole run, whatever this process did of it
            logs["train_loss"] = self.trainer._total_loss_scalar / max(state.global_step, 1)

    def gathered(self) -> list[dict[str, float]]:
        """The sums of every rank as they were when the last step ended. Every rank calls it."""
        own = {name: float(value) for name, value in (self._at_boundary or self.trainer._sums_so_far()).items()}
        return gather_object([own]) if self.trainer.args.world_size > 1 else [own]


class LastStep(TrainerCallback):
    """Knows whether weights have moved since the last step, and begins a resumed training with an evaluation that was
    due at its checkpoint and is not in its log."""

    def __init__(self, trainer: Any, proof: ProofCallback):
        self.trainer, self.proof = trainer, proof
        self.steps, self.evaluating = 0, False

    @property
    def moved(self) -> bool:
        """Whether an optimizer step was begun and not ended."""
        return self.proof.steps != self.steps

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps, self.evaluating, step = self.proof.steps, False, state.global_step
        if not step or args.eval_strategy != IntervalStrategy.STEPS or step % int(args.eval_steps):
            return
        if not any(line["step"] == step and _of_evaluation(line) for line in state.log_history):
            self.trainer._evaluate(None, None)

    def on_step_end(self, args, state, control, **kwargs):
        self.steps = self.proof.steps

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Around an evaluation while training. Raises OutOfMemoryError when it needs more memory than there is."""
        self.evaluating = True
        with memory_errors("evaluation", f"eval_batch_size ({self.trainer.args.per_device_eval_batch_size})"):
            yield
        self.evaluating = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Around the training.

        Raises:
            OutOfMemoryError: it needs more memory than there is; everything else is raised as it came.
        """
        lower = (f"micro_batch_size ({self.trainer.args.per_device_train_batch_size})", "max_length")
        try:
            with memory_errors("training", *lower):
                yield
        except (TrainingError, StorageError):  # of weights that are broken already, or of the disk
            raise
        except Exception as problem:
            if self.trainer.args.world_size == 1 and self.trainer.state.global_step and not self.moved:
                self._save(problem)
            raise

    def _save(self, problem: Exception) -> None:
        state = self.trainer.state
        if self.evaluating:  # what it logged before it failed will be logged again
            here, history = state.global_step, state.log_history
            state.log_history = [line for line in history if line["step"] != here or not _of_evaluation(line)]
        try:
            self.trainer._save_checkpoint(self.trainer.model, None)
        except Exception as worse:  # the first error is the one to tell
            problem.add_note(f"the state of step {state.global_step} could not be saved ({worse})")
            return
        told = f"the state of step {state.global_step} is saved in {self.trainer.checkpoint_dir}"
        logger.warning("%s failed; %s", "the evaluation" if self.evaluating else "the training", told)
        problem.add_note(told)


def _of_evaluation(line: dict[str, Any]) -> bool:
    return any(name.startswith("eval_") for name in line)
