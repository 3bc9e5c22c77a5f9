"""Run one stage, or the chain: finished stages are skipped, interrupted ones continued at their last checkpoint.

A stage is finished when its `summary.json` is there. `fresh` starts anew (`align.stages.fresh`).
"""

from __future__ import annotations

import gc
import logging
import os
import time
from datetime import timedelta
from importlib import import_module
from pathlib import Path

from align.recipe import Recipe, batch_plan
from align.recipe.check import describe_batches, missing_inputs, run_problems
from align.recipe.errors import RecipeError
from align.recipe.lineage import stage_dir
from align.recipe.sources import WORLD, source_path, stage_sources
from align.runs.lock import CHAIN, locked
from align.runs.memory import peak_memory_gib
from align.runtime.terminal import say
from align.stages import hooks
from align.stages.changes import descendants, is_finished, require_same_world, require_unchanged, stamp_world
from align.stages.common import Summary, command, is_main, write_summary
from align.stages.fresh import clear_chain, clear_stages
from align.stages.overview import print_table, stage_summary, write_chain_summary
from data_formats.errors import MissingFileError

LOG = logging.getLogger("align")
RUNNERS = {
    "base": "align.stages.base",
    "sft": "align.stages.sft",
    "pmp": "align.stages.reward",
    "rm": "align.stages.reward",
    "rejection": "align.stages.rejection",
    "ppo": "align.stages.ppo",
}


def run_chain(recipe: Recipe, *, fresh: bool = False) -> Summary:
    """Run every stage of the recipe in order, then write `<output_dir>/summary.json` and print the table.

    Raises:
        RecipeError: the recipe has no stage or cannot run.
        RecipeChangedError: the output folder holds the work of another recipe.
        FolderInUseError: another process is at work in it.
        StageStopped: Ctrl-C; the same command continues.
    """
    if problems := run_problems(recipe, recipe.stages):
        raise RecipeError(problems, recipe.name)
    with locked(recipe.output_dir, [CHAIN]):
        return _run_chain(recipe, fresh)


def _run_chain(recipe: Recipe, fresh: bool) -> Summary:
    if fresh:
        _meet()
        with locked(recipe.output_dir, recipe.stages):
            clear_chain(recipe)
    _meet()
    require_unchanged(recipe, recipe.stages)
    if is_main():
        say(describe_batches([batch_plan(recipe, stage) for stage in recipe.stages]), flush=True)
    for stage in recipe.stages:
        run_stage(recipe, stage)
    if not is_main():
        return {}
    from align.report.build import build_report

    build_report(recipe.output_dir)
    summary = write_chain_summary(recipe)  # the last file: whoever finds it finds the whole chain
    print_table(recipe, summary)
    return summary


def run_stage(recipe: Recipe, stage: str, *, fresh: bool = False) -> Summary:
    """Run one stage, unless it is finished, and the hooks it still lacks; returns its summary.

    Raises:
        MissingFileError: an input stage is not finished; names the command that runs it.
        RecipeChangedError: the stage's folder holds the work of another recipe.
        FolderInUseError: another process runs the stage, or, with `fresh`, one that builds on it.
        StageStopped: Ctrl-C; the same command continues.
    """
    _meet()
    with locked(recipe.output_dir, descendants(recipe, (stage,)) if fresh else [stage]):
        if fresh:
            _clear(recipe, stage)
        return _run_stage(recipe, stage)


def _clear(recipe: Recipe, stage: str) -> None:
    if _world_sets(recipe, stage):
        require_same_world(recipe)  # before anything is removed
    gone = clear_stages(recipe, (stage,))
    if gone:
        say(f"{stage}: starts anew; removed what was made from it: {', '.join(gone)}", flush=True)
    _meet()


def _run_stage(recipe: Recipe, stage: str) -> Summary:
    require_unchanged(recipe, (stage,))
    began = time.perf_counter()
    if is_finished(recipe, stage):
        if is_main():
            say(f"{stage}: finished before, in {stage_dir(recipe, stage)} (--fresh starts anew)", flush=True)
        summary = stage_summary(recipe, stage) or {}
    else:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # bars of every saved and loaded file would break the stage's own
        require_inputs(recipe, stage)
        prepare_data(recipe, stage)
        summary = import_module(RUNNERS[stage]).run(recipe, stage)
        summary["seconds"] = round(time.perf_counter() - began, 2)  # the making of the embedded world's sets included
        began = time.perf_counter()
        summary = write_summary(stage_dir(recipe, stage), summary)
        gc.collect()  # the next stage's model should not meet this one's in memory
    _meet()
    return _contribute(recipe, stage, summary, began)


def _contribute(recipe: Recipe, stage: str, summary: Summary, began: float) -> Summary:
    """Add what the stage's hooks find out; every hook's figures are written as soon as they are there."""
    for name in hooks.STAGE_HOOKS.get(stage, []):
        done = summary.get("hooks", [])
        if name in done:
            continue
        found = hooks.resolve(name)(recipe, stage, summary)
        rows = [*summary.get("headline", []), *found.get("headline", [])]
        summary = summary | found | {"headline": rows, "hooks": [*done, name]}
        summary["seconds"] = summary.get("seconds", 0.0) + round(time.perf_counter() - began, 2)
        summary["peak_memory_gib"] = max(summary.get("peak_memory_gib") or 0.0, peak_memory_gib() or 0.0)
        began = time.perf_counter()
        summary = write_summary(stage_dir(recipe, stage), summary)
    return summary


def require_inputs(recipe: Recipe, stage: str) -> None:
    """Raises MissingFileError with the command to run when a model that `stage` starts from is not there."""
    missing = missing_inputs(recipe, stage)
    if missing:
        first = missing[0]
        raise MissingFileError(
            f"stage '{stage}' starts from {' and '.join(missing)}, not finished in {recipe.output_dir}: "
            f"run `{command(first)}` first, or the whole chain with `align run RECIPE`"
        )


def prepare_data(recipe: Recipe, stage: str) -> None:
    """Write the sets of the embedded world that the stage reads; those with sampled replies need finished stages.

    Raises:
        RecipeChangedError: those that are there were made with another seed or other sizes.
    """
    sets = _world_sets(recipe, stage)
    if sets:
        require_same_world(recipe)
    missing = {name for name, file in sets.items() if not file.is_file()}
    if missing and is_main():
        from align.stages import world

        if missing - set(world.LABELLED):
            stamp_world(recipe)
            world.materialise(recipe)
        if missing & set(world.LABELLED):
            world.label_comparisons(recipe)
    _meet()


def _world_sets(recipe: Recipe, stage: str) -> dict[str, Path]:
    sources = [source for _, source in stage_sources(recipe, stage) if source.path.startswith(WORLD)]
    return {source.path.removeprefix(WORLD): source_path(recipe, source) for source in sources}


def _meet() -> None:
    """A barrier: no rank looks at the files before the first one has written or removed them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch
        from accelerate import PartialState

        # the first rank labels and judges alone for longer than a collective's default ten minutes
        PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1)).wait_for_everyone()
