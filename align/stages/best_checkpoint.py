"""`best/`: the model of the lowest held-out loss so far, until the stage is finished.

The folder holds what `model/` would and `best.json` (the step and what was measured there) and takes its name only
when it is whole, so a kill leaves the best before or the new one. It belongs to the run, not to a checkpoint: a run
that resumes before the best step trains through it again and arrives at the same weights.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from align.models.save import save_model
from align.runs.errors import CheckpointError, TrainingError
from align.runtime import files
from align.runtime.ranks import agree, barrier, is_main

LOG = logging.getLogger("align")
BEST, FIGURES = "best", "best.json"
MEASURED = ("by_category", "replies", "end_rate", "distinct", "reply_tokens")  # beside step and loss


def put_back(out_dir: Path, summary: dict[str, Any]) -> None:
    """Make `best/` again from the model of a finished stage, for a longer run to beat."""
    evaluation = {name: summary[name] for name in MEASURED if name in summary}
    evaluation |= {"step": summary["best_step"], "heldout_loss": summary["best_heldout_loss"]}
    with files.atomic_dir(out_dir / BEST) as draft:
        shutil.copytree(out_dir / "model", draft, dirs_exist_ok=True)
        files.write_json(draft / FIGURES, evaluation)


class BestCheckpoint:
    """Keeps the best model of a stage.

    Args:
        trainer: whose weights are kept and put back.
        out_dir: the stage's folder.

    Raises:
        CheckpointError: a `best/` that cannot be read.
    """

    def __init__(self, trainer: Any, out_dir: Path):
        self.trainer, self.folder = trainer, out_dir / BEST
        if is_main():
            files.heal(self.folder)
        barrier()  # nobody reads before the first rank has healed
        self.best: dict[str, Any] | None = self._read()

    def _read(self) -> dict[str, Any] | None:
        if not self.folder.is_dir():
            return None
        try:
            found = json.loads((self.folder / FIGURES).read_text(encoding="utf-8"))
            return found if math.isfinite(found["heldout_loss"]) and isinstance(found["step"], int) else None
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{self.folder / FIGURES} cannot be read, so the best model is unknown: start the stage with --fresh"
            ) from None

    def tell_of_loss(self, history: list[dict[str, Any]], step: int) -> None:
        """Warn where a resumed run measured held-out losses before, but no `best/` is left of them."""
        measured = [line for line in history if "eval_loss" in line]
        if self.best is None and measured and is_main():
            best = min(measured, key=lambda line: line["eval_loss"])
            LOG.warning(
                "%s is gone: the best so far (held-out loss %.4g, step %s) cannot be had again, so the best is chosen "
                "among the models after step %d (--fresh starts the stage anew)",
                self.folder,
                best["eval_loss"],
                best["step"],
                step,
            )

    def offer(self, evaluation: dict[str, Any]) -> None:
        """Keep the current weights if `evaluation["heldout_loss"]` is below that of the best. Every rank calls it.

        Raises:
            StorageError: the disk is full or not writable; the best before is intact.
        """
        if not evaluation["heldout_loss"] < (self.best["heldout_loss"] if self.best else math.inf):
            return
        weights = self.trainer.gathered_weights()
        told = "the first rank could not keep the best model (see its message)"
        agree(lambda: self._write(evaluation, weights), lambda _: TrainingError(told), mine=is_main())
        self.best = evaluation

    def _write(self, evaluation: dict[str, Any], weights: dict[str, Any] | None) -> None:
        with files.atomic_dir(self.folder) as draft:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            save_model(model, self.trainer.processing_class, draft, weights)
            files.write_json(draft / FIGURES, evaluation)

    def restore(self) -> dict[str, Any]:
        """Put the best weights into the trainer's model; returns what was measured with them.

        Raises:
            TrainingError: no evaluation gave a finite loss.
        """
        if self.best is None:
            raise TrainingError("no held-out loss was finite, so there is no best model: lower the learning rate")
        if self.best["step"] != self.trainer.state.global_step:
            self.trainer._load_from_checkpoint(str(self.folder))  # as Trainer does with its own best checkpoint
        return self.best

    @staticmethod
    def remove(out_dir: Path) -> None:
        """Remove the folder, once `model/` and the summary are written."""
        if is_main():
            shutil.rmtree(out_dir / BEST, ignore_errors=True)


class Offers(TrainerCallback):
    """Offers the model of every evaluation while training to the best one, for a trainer whose evaluations measure no
    more than it does itself."""

    def __init__(self, best: BestCheckpoint):
        self.best = best

    def on_train_begin(self, args, state, control, **kwargs):
        self.best.tell_of_loss(state.log_history, state.global_step)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.best.offer({"step": state.global_step, "heldout_loss": metrics["eval_loss"]})
