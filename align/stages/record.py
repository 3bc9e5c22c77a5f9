"""What a supervised stage has when it has trained and not yet measured: its model, and `trained.json` beside it.

Evaluation never stands between training and saving. As soon as the last step is made, the model is written, then the
record, to which every later part of the stage adds what it found; the summary takes its place. A run that was left in
between (an evaluation that failed, a kill) goes on after the last recorded part, with the saved model and without
training; on other rows only where their change is accepted, and then it measures again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.recipe.lineage import TRAINED
from align.runs.errors import CheckpointError
from align.runtime import files
from align.runtime.ranks import any_rank, is_main
from align.stages import common
from align.stages.drafts import prove_outputs

TRAINING, MEASURED = "training", ("before", "look")
Figures = dict[str, Any]


class Record:
    """The parts of a stage that are done.

    Args:
        trainer: of a `SupervisedTrainer`'s kind; `<its output_dir>/model` is written, or read.
        tokenizer: saved with the model.
        stage: the name shown.

    Raises:
        StorageError, OutputError: the model could not be saved at the end (`align.stages.drafts`).
        CheckpointError: a `trained.json` that cannot be read, or whose model was trained on other rows.
    """

    def __init__(self, trainer: Any, tokenizer: Any, stage: str):
        self.trainer, self.tokenizer, self.stage = trainer, tokenizer, stage
        self.folder = Path(trainer.args.output_dir)
        trainer.data.keys = (f"{stage}.data", f"{stage}.eval_data")
        any_rank(False)  # a barrier: nobody reads while the first rank still writes for another trainer
        self.found: dict[str, Figures] = self._read()
        if not self.trained:
            model = trainer.accelerator.unwrap_model(trainer.model)
            prove_outputs(stage, self.folder, tokenizer, {"model": model})

    def _read(self) -> dict[str, Figures]:
        file = self.folder / TRAINED
        if not file.is_file() or not (self.folder / "model").is_dir():
            return {}
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            steps = found["state"]["max_steps"]
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{file} cannot be read: remove it, and the last steps are trained again") from None
        if steps != self.trainer.planned_steps():
            return {}
        changed = self.trainer.data.compare(self.folder / "model", found.get("data") or {})
        if not changed:
            return found
        kept = {part: value for part, value in found.items() if part not in MEASURED}
        return kept | {"data": self.trainer.data.found()}

    @property
    def trained(self) -> bool:
        """Whether training is over and the model saved."""
        return TRAINING in self.found

    def once(self, part: str, work: Callable[[], Figures]) -> Figures:
        """What `work()` found, now or in the run that was left. Every rank calls it."""
        if part not in self.found:
            self.found[part] = work()
            if self.trained:
                self._write()
        return self.found[part]

    def train(self, *shown: str) -> Figures:
        """`common.train`, then save the model; of a run that was left after that, load it.

        Args:
            shown: which figures the bar shows, default those of `common.train`.
        """
        from align.runs.callbacks import attach

        if self.trained:
            attach(self.trainer, self.stage, self.folder)
            self.trainer._load_from_checkpoint(str(self.folder / "model"))
            for name, value in self.found["state"].items():
                setattr(self.trainer.state, name, value)
            common.LOG.info("%s: trained before, only what comes after is done", self.stage)
            return self.found[TRAINING]
        figures = common.train(self.trainer, self.stage, *((shown,) if shown else ()))
        common.save_model(self.trainer, self.tokenizer)
        state = self.trainer.state
        self.found["state"] = {name: getattr(state, name) for name in ("global_step", "max_steps", "epoch")}
        self.found |= {"data": self.trainer.data.found(), TRAINING: figures}
        self._write()
        return figures

    def _write(self) -> None:
        if is_main():
            files.write_json(self.folder / TRAINED, common.finite(self.found))
        any_rank(False)
