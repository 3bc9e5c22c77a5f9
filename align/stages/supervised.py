"""What the supervised stages (base, sft, pmp, rm, dpo) do alike: load, account for rows, train with resuming, save,
measure.

Evaluation never stands between training and saving. As soon as the last step is made, the model is written, then
`trained.json` beside it (`Record`), to which every later part of the stage adds what it found; the summary takes its
place. A run that was left in between (an evaluation that failed, a kill) goes on after the last recorded part, with the
saved model and without training; on other rows only where their change is accepted, and then it measures again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from align.data.mixture import drawn_by_epochs, with_epochs
from align.recipe import Recipe, batch_plan
from align.recipe.epochs import epochs_of_whole_passes
from align.recipe.lineage import TRAINED, Origin
from align.recipe.registry import STAGES
from align.recipe.supervised_sections import SupervisedSection
from align.runs import checkpoint
from align.runs.errors import CheckpointError
from align.runs.seeding import derive
from align.runtime import files
from align.runtime.memory import memory_errors
from align.runtime.ranks import barrier, is_main
from align.stages import common
from align.stages.drafts import prove_outputs
from align.stages.ending import early_stopping, ended_early, logged, tell_epochs, tell_mixture
from align.trainers.arguments import training_arguments
from align.trainers.sft import SFTTrainer
from data_formats.errors import EmptyDatasetError

TRAINING, MEASURED = "training", ("before", "evaluation")
Figures = dict[str, Any]


def load(recipe: Recipe, stage: str, origin: Origin, section: SupervisedSection) -> tuple[Any, Any]:
    """Model, with its adapter where the stage trains one, and tokenizer that the stage starts from."""
    from align.models.load import load_causal_lm
    from align.models.tokenizer import recipe_tokenizer

    path, model = common.origin_path(recipe, origin, stage=stage), recipe.model
    if not STAGES[stage].adapted:
        model = model.without_adapter()
    own_template = getattr(section, "default_system", "none") == "template"
    tokenizer = recipe_tokenizer(path, model, own_template=own_template)
    seed = derive(recipe.seed, stage, "adapter")
    options = {"tokenizer": tokenizer, "attention_dropout": section.attention_dropout, "seed": seed}
    return load_causal_lm(path, model, **options), tokenizer


def arguments(
    recipe: Recipe, stage: str, section: SupervisedSection, out_dir: Path, *, evaluate: bool
) -> TrainingArguments:
    """The trainer's arguments; making them also finds this rank's device.

    Args:
        evaluate: whether there are held-out rows for `eval_steps`.
    """
    return training_arguments(
        section,
        batch_plan(recipe, stage),
        recipe.model,
        out_dir,
        seed=derive(recipe.seed, stage, "train"),
        evaluate=evaluate,
    )


def heldout_metrics(trainer: SFTTrainer) -> dict[str, Any]:
    """Metrics of the trainer's held-out rows, `eval_loss` in nats a token among them; empty without rows."""
    rows = trainer.eval_dataset
    with evaluating(trainer):
        return trainer.predict(rows, metric_key_prefix="eval").metrics if rows else {}


def account(
    stage: str,
    section: SupervisedSection,
    reports: Sequence[Any],
    training: tuple[Sequence[Any], dict[str, int]],
    heldout: tuple[Sequence[Any], dict[str, int]],
) -> dict[str, Any]:
    """`described`, for a supervised stage, once it is sure that there is something to train on.

    Args:
        training, heldout: the encoded rows, and how many were dropped for which reason.

    Raises:
        EmptyDatasetError: no training row is left, or none of the `eval_data` that the recipe names.
    """
    found = common.described(stage, reports, training[1], heldout[1])
    common.need_rows(
        *training, what=f"stage '{stage}' has no training rows", keys=f"{stage}.data and {stage}.max_length"
    )
    if section.eval_data:
        what, keys = f"stage '{stage}' has no held-out rows", f"{stage}.eval_data and {stage}.max_length"
        common.need_rows(*heldout, what=what, keys=keys)
    elif section.holdout and not heldout[0]:
        common.LOG.warning("%s: no held-out rows are left, so nothing is measured: raise %s.holdout", stage, stage)
    return found


def seen(rows: list[Any], section: SupervisedSection, recipe: Recipe, read: Figures) -> list[Any]:
    """The rows to train on, each as often as its source's `epochs` say; what that comes to is added to `read`.

    Raises:
        EmptyDatasetError: that is never.
    """
    training = with_epochs(rows, section.data, recipe.seed)
    if not training:
        raise EmptyDatasetError(f"the epochs of the sources leave none of {len(rows)} training rows: raise them")
    if training is not rows:
        read["mixture"] = drawn_by_epochs(rows, training)
    return training


def need_heldout(stage: str, section: Any, rows: Sequence[Any], dropped: dict[str, int]) -> None:
    """Raises EmptyDatasetError when the best model is to be kept, but there is no held-out row to choose it by."""
    if section.keep_best:
        keys = f"{stage}.eval_data, {stage}.holdout and {stage}.max_length"
        common.need_rows(rows, dropped, what=f"{stage}.keep_best needs held-out rows", keys=keys)


def train(
    trainer: Any,
    stage: str,
    recipe: Recipe,
    section: SupervisedSection,
    figures: tuple[str, ...] = ("loss", "learning_rate"),
) -> dict[str, Any]:
    """Train to the end, from the latest whole checkpoint where there is one.

    Args:
        figures: what the progress bar shows of the logged values.

    Returns:
        `steps`, `epochs`, `train_loss` (the last one logged), `train_seconds`, `resumed_from` (0 = from the start);
        of an adapter also `trained_parameters` of all `parameters`; `stopped_early`, why, where it was; `mixture`, what
        was drawn of each part, where the section has one.

    Raises:
        StageStopped: Ctrl-C, or a scheduler's signal; a checkpoint was written.
        TrainingError: the loss is not finite.
        CheckpointError: the checkpoint to go on from was trained on other rows.
    """
    from align.runs.callbacks import attach, tracker_callbacks
    from align.runs.interrupt import StopFlag

    out_dir = Path(trainer.args.output_dir)
    latest = checkpoint.latest(trainer.checkpoint_dir)
    start, began = checkpoint.step_of(latest) if latest else 0, time.perf_counter()
    share = trained_parameters(trainer.model, stage)
    early, planned, rows = early_stopping(section), trainer.planned_steps(), len(trainer.train_dataset)
    epochs = epochs_of_whole_passes(planned, section.batch_size, rows)
    tell_epochs(stage, section, planned, epochs, rows, row=section.unit)
    if section.mixture is not None:
        tell_mixture(stage, section, trainer.mixed_order.drawn(planned))
    with StopFlag() as flag:
        own = [*early, *tracker_callbacks(recipe, out_dir)]
        attach(trainer, stage, out_dir, flag, figures=figures, added=own, epochs=epochs)
        if latest and (start >= planned or any(one.verdict(logged(latest)) for one in early)):
            trainer.load_finished(latest)  # killed after its last step: transformers would make one more
        else:
            trainer.train(resume_from_checkpoint=str(latest) if latest else None)
        code = flag.code()
    state = trainer.state
    if state.global_step < state.max_steps and code is not None:
        common.LOG.warning(
            "%s: stopped at step %d of %d, saved in %s", stage, state.global_step, state.max_steps, out_dir
        )
        raise common.StageStopped(f"stage '{stage}' stopped at step {state.global_step}", code)
    return {
        "steps": state.global_step,
        "epochs": round(epochs_of_whole_passes(state.global_step, section.batch_size, rows), 3),
        **ended_early(state, early),
        "train_loss": next((line["loss"] for line in reversed(state.log_history) if "loss" in line), None),
        "train_seconds": round(time.perf_counter() - began, 2),
        "resumed_from": start,
        **share,
        **({} if section.mixture is None else {"mixture": trainer.mixed_order.drawn(state.global_step)}),
    }


def trained_parameters(model: Any, stage: str) -> dict[str, int]:
    """For the summary, and told: how many parameters are trained, of how many; nothing where all are."""
    from align.models.adapters import trained_share

    trained, parameters = trained_share(model)
    if trained == parameters:
        return {}
    percent = 100 * trained / parameters
    common.LOG.info("%s: trains %d of %d parameters (%.2f %%)", stage, trained, parameters, percent)
    return {"trained_parameters": trained, "parameters": parameters}


def evaluating(trainer: Any) -> AbstractContextManager[None]:
    """Around what the trainer evaluates. Raises OutOfMemoryError when that needs more memory than there is."""
    return memory_errors("evaluation", f"eval_batch_size ({trainer.args.per_device_eval_batch_size})")


def try_evaluation(trainer: Any) -> None:
    """Evaluate one batch of the longest held-out rows, which takes the most memory, before anything is trained; leaves
    no trace.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    from align.runs.seeding import rng_state, set_rng_state

    if not trainer.eval_dataset:
        return
    rows = sorted(trainer.eval_dataset, key=trainer.row_length, reverse=True)
    generators, training = rng_state(), trainer.model.training
    with trainer.sharded(), evaluating(trainer):
        trainer.model.eval()
        for batch in trainer.get_test_dataloader(rows[: trainer.args.per_device_eval_batch_size]):
            trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
    trainer.model.train(training)
    set_rng_state(generators)


def save_model(trainer: Any, tokenizer: Any) -> Path:
    """Write `model/` atomically: weights and config, or the adapter alone, and the tokenizer."""
    from align.models import save

    folder, weights = Path(trainer.args.output_dir) / "model", trainer.gathered_weights()
    if is_main():
        with files.atomic_dir(folder) as draft:
            save.save_model(trainer.accelerator.unwrap_model(trainer.model), tokenizer, draft, weights)
    trainer.accelerator.wait_for_everyone()
    return folder


class Record:
    """The parts of a stage that are done.

    Args:
        trainer: of a `SupervisedTrainer`'s kind; `<its output_dir>/model` is written, or read.
        tokenizer: saved with the model.
        stage: the name shown.
        recipe, section: what the stage is told.

    Raises:
        StorageError, OutputError: the model could not be saved at the end (`align.stages.drafts`).
        CheckpointError: a `trained.json` that cannot be read, or whose model was trained on other rows.
    """

    def __init__(self, trainer: Any, tokenizer: Any, stage: str, recipe: Recipe, section: SupervisedSection):
        self.trainer, self.tokenizer, self.stage = trainer, tokenizer, stage
        self.recipe, self.section = recipe, section
        self.folder = Path(trainer.args.output_dir)
        trainer.data.keys = (f"{stage}.data", f"{stage}.eval_data")
        barrier()  # nobody reads while the first rank still writes for another trainer
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
        """`train`, then save the model; of a run that was left after that, load it.

        Args:
            shown: which figures the bar shows, default those of `train`.
        """
        from align.runs.callbacks import attach, tracker_callbacks

        if self.trained:
            attach(self.trainer, self.stage, self.folder, added=tracker_callbacks(self.recipe, self.folder))
            self.trainer._load_from_checkpoint(str(self.folder / "model"))
            for name, value in self.found["state"].items():
                setattr(self.trainer.state, name, value)
            common.LOG.info("%s: trained before, only what comes after is done", self.stage)
            return self.found[TRAINING]
        figures = train(self.trainer, self.stage, self.recipe, self.section, *((shown,) if shown else ()))
        save_model(self.trainer, self.tokenizer)
        state = self.trainer.state
        self.found["state"] = {name: getattr(state, name) for name in ("global_step", "max_steps", "epoch")}
        self.found |= {"data": self.trainer.data.found(), TRAINING: figures}
        self._write()
        return figures

    def _write(self) -> None:
        if is_main():
            files.write_json(self.folder / TRAINED, common.finite(self.found))
        barrier()
