"""What every supervised stage does alike: find its start, keep its folder, train with resuming, write its figures."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from align.recipe import Recipe, dump_recipe
from align.recipe.lineage import TRAINED, Origin, has_model, model_dir
from align.recipe.registry import STAGES
from align.recipe.supervised_sections import SupervisedSection
from align.runs import checkpoint
from align.runs.acceptance import accepted
from align.runtime import files
from align.runtime.json_files import RunFileError, read_object, read_objects
from align.runtime.memory import memory_errors, peak_memory_gib
from align.runtime.ranks import is_main
from data_formats.cleaning import CleaningReport
from data_formats.errors import DataError, EmptyDatasetError, MissingFileError

LOG = logging.getLogger("align")
Summary = dict[str, Any]
MADE_BY_STAGES = (
    "model",
    "best",
    "critic",
    "ema",
    "checkpoints",
    TRAINED,
    "rounds",
    "failed",
    "metrics.jsonl",
    "samples.jsonl",
    "ghost.jsonl",
    "eval.jsonl",
    "most_wrong.jsonl",
    "accepted.json",
    "recipe.yaml",
    "summary.json",
)


class StageStopped(KeyboardInterrupt):
    """The user asked to stop and everything up to the last step is saved; ends the program as Ctrl-C does."""


def origin_path(recipe: Recipe, origin: Origin, *, stage: str) -> str:
    """Folder or hub id of the model that `stage` starts from.

    Raises:
        MissingFileError: it should come from a stage that has not finished; says which command makes it.
    """
    if origin.kind != "stage":
        return origin.value
    folder = model_dir(recipe, origin.value)
    if not has_model(recipe, origin.value):
        missing = "has not been measured yet" if folder.is_dir() else "does not exist"
        raise MissingFileError(
            f"stage '{stage}' starts from the model of stage '{origin.value}', but {folder} {missing}: "
            f"run `align run RECIPE` or `{STAGES[origin.value].command}` first"
        )
    return str(folder)


def memory_keys(recipe: Recipe, stage: str) -> list[str]:
    """The keys, with their values, that make a stage need less memory."""
    section = getattr(recipe, stage)
    names = ("micro_batch_size", "eval_batch_size", "max_length")
    found = [f"{stage}.{name} ({getattr(section, name)})" for name in names if hasattr(section, name)]
    rollout = getattr(section, "rollout", None)
    if rollout is not None:
        shown = {"batch_size": rollout.batch_size, "max_completion_length": rollout.max_completion_length}
        found += [f"{stage}.rollout.{name} ({value})" for name, value in shown.items()]
    return found


def open_folder(recipe: Recipe, out_dir: Path) -> None:
    """Make the stage's folder and write the resolved recipe into it."""
    if is_main():
        files.write_text(out_dir / "recipe.yaml", dump_recipe(recipe))


def described(
    stage: str, reports: Sequence[Any], dropped: dict[str, int], heldout_dropped: dict[str, int] | None = None
) -> dict[str, Any]:
    """Log what was read and dropped; the same for the summary."""
    cleaned = [report for report in reports if isinstance(report, CleaningReport)]
    for report in reports:
        LOG.info("%s: %s", stage, report.describe())
    for kind, counts in (("rows", dropped), ("held-out rows", heldout_dropped or {})):
        for reason, count in counts.items():
            LOG.info("%s: %d %s: %s", stage, count, kind, reason)
    unread: Counter[str] = Counter()
    for report in reports:
        if report not in cleaned:
            unread.update(report.dropped)
    found: dict[str, Any] = {"unread_rows": dict(unread), "dropped_rows": dropped}
    if cleaned:
        found["cleaning"] = cleaned[0].to_dict()
    return found if heldout_dropped is None else found | {"heldout_dropped_rows": heldout_dropped}


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
    found = described(stage, reports, training[1], heldout[1])
    need_rows(*training, what=f"stage '{stage}' has no training rows", keys=f"{stage}.data and {stage}.max_length")
    if section.eval_data:
        what, keys = f"stage '{stage}' has no held-out rows", f"{stage}.eval_data and {stage}.max_length"
        need_rows(*heldout, what=what, keys=keys)
    elif section.holdout and not heldout[0]:
        LOG.warning("%s: no held-out rows are left, so nothing is measured: raise %s.holdout", stage, stage)
    return found


def need_rows(rows: Sequence[Any], dropped: dict[str, int], *, what: str, keys: str) -> None:
    """Raises EmptyDatasetError when nothing is left: `what` is missing, and the `keys` of the recipe to look at."""
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "no row was read"
        raise EmptyDatasetError(f"{what} ({reasons}): check {keys}")


def train(trainer: Any, stage: str, figures: tuple[str, ...] = ("loss", "learning_rate")) -> dict[str, Any]:
    """Train to the end, from the latest whole checkpoint where there is one.

    Args:
        figures: what the progress bar shows of the logged values.

    Returns:
        `steps`, `train_loss` (the last one logged), `train_seconds`, `resumed_from` (0 = from the start); of an
        adapter also `trained_parameters` of all `parameters`.

    Raises:
        StageStopped: Ctrl-C; a checkpoint was written.
        TrainingError: the loss is not finite.
        CheckpointError: the checkpoint to go on from was trained on other rows.
    """
    from align.models.adapters import trained_share
    from align.runs.callbacks import attach
    from align.runs.interrupt import StopFlag

    out_dir = Path(trainer.args.output_dir)
    latest = checkpoint.latest(trainer.checkpoint_dir)
    start = checkpoint.step_of(latest) if latest else 0
    trained, parameters = trained_share(trainer.model)
    share = {"trained_parameters": trained, "parameters": parameters} if trained < parameters else {}
    if share:
        LOG.info("%s: trains %d of %d parameters (%.2f %%)", stage, trained, parameters, 100 * trained / parameters)
    began = time.perf_counter()
    with StopFlag() as flag:
        attach(trainer, stage, out_dir, flag, figures=figures)
        if latest and start >= trainer.planned_steps():
            trainer.load_finished(latest)  # killed after the last step: transformers would make one more
        else:
            trainer.train(resume_from_checkpoint=str(latest) if latest else None)
    state = trainer.state
    if state.global_step < state.max_steps:
        LOG.warning("%s: stopped at step %d of %d, saved in %s", stage, state.global_step, state.max_steps, out_dir)
        raise StageStopped(f"stage '{stage}' stopped at step {state.global_step}")
    return {
        "steps": state.global_step,
        "train_loss": next((line["loss"] for line in reversed(state.log_history) if "loss" in line), None),
        "train_seconds": round(time.perf_counter() - began, 2),
        "resumed_from": start,
        **share,
    }


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
    trainer.model.eval()
    with evaluating(trainer):
        for batch in trainer.get_test_dataloader(rows[: trainer.args.per_device_eval_batch_size]):
            trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
    trainer.model.train(training)
    set_rng_state(generators)


def save_model(trainer: Any, tokenizer: Any) -> Path:
    """Write `model/` atomically: weights and config, or the adapter alone, and the tokenizer."""
    from align.models import save

    folder = Path(trainer.args.output_dir) / "model"
    if is_main():
        with files.atomic_dir(folder) as draft:
            save.save_model(trainer.accelerator.unwrap_model(trainer.model), tokenizer, draft)
    trainer.accelerator.wait_for_everyone()
    return folder


def write_summary(out_dir: Path, summary: Summary) -> Summary:
    """Write `summary.json`, the mark of a finished stage; numbers that are not finite become null."""
    summary = finite(summary)
    if is_main():
        files.write_json(out_dir / "summary.json", summary)
    return summary


def finish(out_dir: Path, figures: Summary, began: float) -> Summary:
    """Write the summary of a stage that began at `began` (`time.perf_counter`), with its seconds and peak memory."""
    cost = {"seconds": round(time.perf_counter() - began, 2), "peak_memory_gib": peak_memory_gib()}
    changes = accepted(out_dir)
    summary = write_summary(out_dir, figures | cost | ({"accepted": changes} if changes else {}))
    if is_main():
        (out_dir / TRAINED).unlink(missing_ok=True)
    return summary


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines atomically (the first rank only)."""
    if is_main():
        write_rows(path, rows)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines atomically, whichever rank this is."""
    files.write_json_lines(path, rows)


def read_rows(path: Path, advice: str = "remove it to have it made again") -> list[dict[str, Any]]:
    """The rows of JSON lines that a stage wrote.

    Raises:
        DataError: the file is not there or damaged.
    """
    try:
        return read_objects(path, advice)
    except RunFileError as error:
        raise DataError(str(error)) from error


def read_summary(folder: Path) -> Summary | None:
    """What a stage, a control or the chain left in its `summary.json`, None where it has not finished.

    Raises:
        RunFileError: the file is damaged.
    """
    return read_object(folder / "summary.json", "remove it, and the same command writes it again")


def device() -> Any:
    """This rank's device."""
    return _process_state().device


def place() -> tuple[int, int]:
    """This rank's number and how many there are."""
    state = _process_state()
    return state.process_index, state.num_processes


def _process_state() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def finite(value: Any) -> Any:
    """`value` with None for every number that is not finite: JSON has none of these."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
