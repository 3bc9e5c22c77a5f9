"""What every supervised stage does alike: find its start, keep its folder, train with resuming, write its figures."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from align.data.mixture import drawn_by_weight
from align.recipe import Recipe, dump_recipe
from align.recipe.lineage import TRAINED, WITH_CHATML, Origin, code_hashes, has_model, model_dir
from align.recipe.registry import STAGES
from align.runs.acceptance import accepted
from align.runs.interrupt import Stopped
from align.runs.provenance import provenance
from align.runtime import files
from align.runtime.errors import MissingFileError
from align.runtime.json_files import RunFileError, read_object, read_objects
from align.runtime.memory import peak_memory_gib
from align.runtime.ranks import barrier, is_main
from data_formats.cleaning import CleaningReport
from data_formats.errors import DataError, EmptyDatasetError

LOG = logging.getLogger("align")
Summary = dict[str, Any]
PUSHED = "pushed.json"  # to which repository the model was pushed
JUDGED = "judge"  # what a judge answered that is asked over a network, a file a rank
WARMUP = "warmup"  # the replies that ppo sampled for the critic alone, a file an iteration
SELECTION = "selection"  # which rows are learnt from, and why
CODE = "code.json"  # the hashes of the user's own code that the recipe names
MADE_BY_STAGES = (
    "model",
    "best",
    "critic",
    "ema",
    "checkpoints",
    TRAINED,
    SELECTION,
    "rounds",
    WARMUP,
    "failed",
    "metrics.jsonl",
    "samples.jsonl",
    "ghost.jsonl",
    "reference.json",
    "eval.jsonl",
    "replies.jsonl",
    JUDGED,
    "most_wrong.jsonl",
    "accepted.json",
    "recipe.yaml",
    CODE,
    "trackers.json",
    PUSHED,
    "summary.json",
)


class StageStopped(Stopped):
    """A person or a scheduler asked to stop, and everything up to the last step is saved."""


def origin_path(recipe: Recipe, origin: Origin, *, stage: str) -> str:
    """Folder or hub id of the model that `stage` starts from.

    Raises:
        MissingFileError: it should come from a stage that has not finished; says which command makes it.
    """
    if origin.kind != "stage":
        if origin.value != recipe.model.path or not recipe.model.tokenizer.add_chatml:
            return origin.value
        from align.models.embeddings import with_chatml

        return with_chatml(recipe.model, Path(recipe.output_dir) / WITH_CHATML)
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
    """Make the stage's folder and write the resolved recipe into it, and which code of the user's it names."""
    if is_main():
        files.write_text(out_dir / "recipe.yaml", dump_recipe(recipe))
        if hashes := code_hashes(recipe):
            files.write_json(out_dir / CODE, hashes)


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
    if weighed := [report for report in reports if report not in cleaned and report.drawn is not None]:
        found["mixture"] = drawn_by_weight(weighed)
    return found if heldout_dropped is None else found | {"heldout_dropped_rows": heldout_dropped}


def need_rows(rows: Sequence[Any], dropped: dict[str, int], *, what: str, keys: str) -> None:
    """Raises EmptyDatasetError when nothing is left: `what` is missing, and the `keys` of the recipe to look at."""
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "no row was read"
        raise EmptyDatasetError(f"{what} ({reasons}): check {keys}")


def write_summary(out_dir: Path, summary: Summary) -> Summary:
    """Write `summary.json`, the mark of a finished stage; numbers that are not finite become null."""
    summary = finite(summary)
    if is_main():
        files.write_json(out_dir / "summary.json", summary)
    return summary


def finish(out_dir: Path, figures: Summary, began: float) -> Summary:
    """Write the summary of a stage that began at `began` (`time.perf_counter`), with its seconds, its peak memory and
    what it was made with.

    Every rank calls it, and finds all that the first one wrote of the stage when it returns.
    """
    cost = {"seconds": round(time.perf_counter() - began, 2), "peak_memory_gib": peak_memory_gib()}
    cost["made_with"] = provenance(place()[1])
    changes = accepted(out_dir)
    summary = write_summary(out_dir, figures | cost | ({"accepted": changes} if changes else {}))
    if is_main():
        (out_dir / TRAINED).unlink(missing_ok=True)
    barrier()
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
    return ranks().device


def place() -> tuple[int, int]:
    """This rank's number and how many there are."""
    state = ranks()
    return state.process_index, state.num_processes


def ranks() -> Any:
    """accelerate's view of the ranks, this one's device among them."""
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
