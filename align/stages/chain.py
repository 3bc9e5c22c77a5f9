"""Run one stage, or the chain: finished stages are skipped, interrupted ones continued at their last checkpoint.

A stage is finished when its `summary.json` is there. What is started anew, and when: `align.stages.redo`. What the
stages are: `align.recipe.registry`.
"""

from __future__ import annotations

import gc
import logging
import os
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from align.plan import PlanError, plan_stages
from align.plan.disk import disk_warning
from align.recipe import Recipe, batch_plan
from align.recipe.check import describe_batches, missing_inputs, run_problems
from align.recipe.errors import RecipeError
from align.recipe.lineage import model_dir, stage_dir
from align.recipe.registry import STAGES
from align.recipe.sources import WORLD, source_path, stage_sources
from align.runs import checkpoint
from align.runs.acceptance import accepting, note
from align.runs.launcher import refuse_settings_of_two_owners
from align.runs.trackers import closing_trackers
from align.runtime.errors import AlignError, MissingFileError, reason_of
from align.runtime.files import is_newer, prove_folder, sweep, write_json
from align.runtime.json_files import read_object
from align.runtime.lock import CHAIN, locked
from align.runtime.memory import memory_errors, peak_memory_gib
from align.runtime.ranks import patience
from align.runtime.resolve import resolve
from align.runtime.terminal import say
from align.stages import redo
from align.stages.cards import write_cards
from align.stages.clean import clear_chain
from align.stages.common import PUSHED, Summary, is_main, memory_keys, write_summary
from align.stages.overview import print_table, stage_summary, write_chain_summary
from align.stages.recipe_guard import changed_code, is_begun, is_finished, require_same_world, stamp_world

LOG = logging.getLogger("align")
PAGE = "report/index.html"
FORMER = {
    "align.stages.outcome:sft": "align.stages.policy_evaluation:evaluate_sft",
    "align.stages.outcome:rolled_out": "align.stages.policy_evaluation:evaluate_policy",
    "align.stages.arms:without_pmp": "align.stages.reward_controls:without_pmp",
    "align.stages.arms:manners": "align.stages.reward_controls:by_manners",
}
"""Under which names a run that was finished before these functions moved has them done."""


def run_chain(
    recipe: Recipe,
    *,
    fresh: bool | Sequence[str] = False,
    start: str | None = None,
    accept: Sequence[str] = (),
    yes: bool | None = None,
    settled: Callable[[], None] = lambda: None,
) -> Summary:
    """Run every stage of the recipe in order, then write `<output_dir>/summary.json` and print the table.

    A finished stage whose keys changed is started anew with what builds on it; see `align.stages.redo`.

    Args:
        fresh: start everything anew, or the stages named and what builds on them.
        start: start this stage and all later ones anew.
        accept: keys of the recipe whose change the stages that are there go on with.
        yes: whether what removes the whole run has the user's consent; with False he is asked at a terminal. None takes
            `fresh=True` for consent.
        settled: is called once what is started anew is removed, before anything runs.

    Raises:
        RecipeError: the recipe has no stage or cannot run; a stage or key that is not in it.
        RecipeChangedError: the output folder holds the work of another recipe.
        NotConfirmedError: consent is missing.
        FolderInUseError: another process is at work in it.
        StageStopped: Ctrl-C; the same command continues.
    """
    problems = run_problems(recipe, recipe.stages) if recipe.stages else ["has no stage to run"]
    if problems:
        raise RecipeError(problems, recipe.name)
    redo.require_keys(recipe, accept)
    named = redo.named_stages(recipe, () if isinstance(fresh, bool) else fresh, start)
    with locked(recipe.output_dir, [CHAIN]), accepting(accept):
        meet()
        if fresh is True:
            redo.confirm(recipe, "--fresh starts the whole run anew", yes is not False)
            with locked(recipe.output_dir, recipe.stages):
                clear_chain(recipe)
        else:
            found = redo.plan(recipe, recipe.stages, named)
            meet()
            redo.carry_out(recipe, found, yes=bool(yes))
        meet()
        settled()
        return _run_chain(recipe)


def _run_chain(recipe: Recipe) -> Summary:
    if is_main():
        for folder in (Path(recipe.output_dir), Path(recipe.output_dir) / "report"):  # the chain's last files
            prove_folder(folder)
        say(describe_batches([batch_plan(recipe, stage) for stage in recipe.stages]), flush=True)
        with suppress(PlanError):  # a model whose shape only its loading tells
            if warning := disk_warning(recipe, plan_stages(recipe)):
                LOG.warning("%s", warning)
    for stage in recipe.stages:
        run_stage(recipe, stage, report=stage != recipe.stages[-1])  # whose page is the chain's
    if not is_main():
        return {}
    summary = write_chain_summary(recipe)  # whoever finds it finds the whole chain, but for the last words of its page
    refresh_report(recipe, Path(recipe.output_dir))
    print_table(recipe, summary)
    return summary


def run_stage(
    recipe: Recipe,
    stage: str,
    *,
    fresh: bool = False,
    accept: Sequence[str] | None = None,
    yes: bool = False,
    report: bool = True,
) -> Summary:
    """Run one stage, unless it is finished, and what of its evaluation it still lacks; returns its summary.

    Where its keys changed it is started anew, and what was made from it is removed; see `align.stages.redo`.

    Args:
        fresh, accept, yes: as for `run_chain`, of this stage.
        report: whether the run's page is drawn with what is new.

    Raises:
        RecipeError: a key of `accept` that the recipe has not.
        MissingFileError: an input stage is not finished; names the command that runs it.
        RecipeChangedError: the stage was begun with another recipe, or builds on one that was.
        FolderInUseError: another process runs the stage, or one that builds on it and would be removed.
        StageStopped: Ctrl-C; the same command continues.
    """
    redo.require_keys(recipe, accept or ())
    meet()
    with locked(recipe.output_dir, [stage]), nullcontext() if accept is None else accepting(accept):
        _settle(recipe, stage, fresh, yes)
        _tell_changed_code(recipe, stage)
        began = time.perf_counter()
        if is_main():
            for name in (stage, *STAGES[stage].beside):
                sweep(stage_dir(recipe, name))
        if is_finished(recipe, stage):
            if is_main():
                told = f"{stage}: finished before, in {stage_dir(recipe, stage)} (--fresh {stage} starts it anew)"
                say(told, flush=True)
            summary = stage_summary(recipe, stage) or {}
        else:
            _make_ready(recipe, stage)
            with closing_trackers(), memory_errors(f"stage '{stage}'", *memory_keys(recipe, stage)):
                summary = resolve(STAGES[stage].run)(recipe, stage)
            summary["seconds"] = round(time.perf_counter() - began, 2)  # the embedded world's sets included
            began = time.perf_counter()
            summary = write_summary(stage_dir(recipe, stage), summary)
            gc.collect()  # the next stage's model should not meet this one's in memory
        meet()
        summary = _evaluate(recipe, stage, summary, began)
        write_cards(recipe, stage)
        _push(recipe, stage)
        _drop_checkpoints(recipe, stage)
    if report and is_main():
        refresh_report(recipe, stage_dir(recipe, stage))
    return summary


def _settle(recipe: Recipe, stage: str, fresh: bool, yes: bool) -> None:
    """Do with what is there of a stage that runs by itself what `align.stages.redo` says."""
    found = redo.plan(recipe, (stage,), (stage,) if fresh else ())
    if found.anew and _world_sets(recipe, stage):
        require_same_world(recipe)  # before anything is removed
    if fresh or not is_begun(recipe, stage):
        redo.warn_of_stale_parents(recipe, stage)
    meet()
    redo.carry_out(recipe, found, yes=yes, alone=True)
    meet()


def _tell_changed_code(recipe: Recipe, stage: str) -> None:
    """Say which files of user code are not what the stage was made with; one that goes on notes it."""
    if not is_main() or not is_begun(recipe, stage):
        return
    changed = changed_code(recipe, stage)
    for one in changed:
        does = (
            f"kept as it was made (--fresh {stage} makes it anew)" if is_finished(recipe, stage) else "goes on with it"
        )
        LOG.warning("%s: another file than it was begun with, %s: %s", stage, one, does)
    if not is_finished(recipe, stage):
        note(stage_dir(recipe, stage), [{"key": one.key, "was": one.was, "is": one.now} for one in changed])


def _make_ready(recipe: Recipe, stage: str) -> None:
    """See to what a stage starts from: finished stages, the embedded world's sets, a process without a past."""
    from transformers.utils import logging as transformers_logging

    from align.runs.proof import reset_process_state
    from align.runtime.devices import bfloat16_is_slow

    refuse_settings_of_two_owners(recipe.model)
    words = recipe.model.float32_words
    if words and is_main() and bfloat16_is_slow():
        LOG.warning("%s: this processor has no products in bfloat16, float32 is many times faster: %s", stage, words)
    transformers_logging.disable_progress_bar()  # bars of every saved and loaded file would break the stage's own
    require_inputs(recipe, stage)
    prepare_data(recipe, stage)
    reset_process_state()


def _evaluate(recipe: Recipe, stage: str, summary: Summary, began: float) -> Summary:
    """Add what the stage's evaluation finds out; every function's figures are written as soon as they are there, and
    its name under `hooks`, so that an interrupted chain calls the others only."""
    for name in STAGES[stage].evaluate:
        done = [FORMER.get(one, one) for one in summary.get("hooks", [])]
        if name in done:
            continue
        with closing_trackers(), memory_errors(f"what follows stage '{stage}'", *memory_keys(recipe, stage)):
            found = resolve(name)(recipe, stage, summary)
        rows = [*summary.get("headline", []), *found.get("headline", [])]
        summary = summary | found | {"headline": rows, "hooks": [*done, name]}
        summary["seconds"] = summary.get("seconds", 0.0) + round(time.perf_counter() - began, 2)
        summary["peak_memory_gib"] = max(summary.get("peak_memory_gib") or 0.0, peak_memory_gib() or 0.0)
        began = time.perf_counter()
        summary = write_summary(stage_dir(recipe, stage), summary)
    return summary


def _push(recipe: Recipe, stage: str) -> None:
    """Bring the model of a finished stage to the hub, where the recipe names a repository and it is not there yet;
    whatever the hub does, the stage is finished."""
    if recipe.hub_model_id is None or not is_main():
        return
    from align.models.push import push

    repo, folder = f"{recipe.hub_model_id}-{stage}", stage_dir(recipe, stage)
    noted = folder / PUSHED
    if is_newer(noted, folder / "summary.json") and read_object(noted, "remove it") == {"repository": repo}:
        return
    try:
        say(f"{stage}: pushed to {push(model_dir(recipe, stage), repo, private=recipe.hub_private_repo)}", flush=True)
        write_json(noted, {"repository": repo})
    except AlignError as error:
        private = " --private" if recipe.hub_private_repo else ""
        command = f"align push {recipe.output_dir} {repo} --stage {stage}{private}"
        LOG.warning("%s; the stage is finished, try again with `%s`, or run the recipe again", error, command)


def refresh_report(recipe: Recipe, folder: Path) -> None:
    """Draw the report anew unless it is newer than the summary in `folder`; whatever it meets, the work is done."""
    if is_newer(Path(recipe.output_dir) / PAGE, folder / "summary.json"):
        return
    try:
        from align.report import build

        build.build_report(recipe.output_dir)
    except Exception as error:
        again = shlex.join(["align", "report", str(recipe.output_dir)])
        LOG.warning("the report could not be written (%s); everything else is there, try `%s`", reason_of(error), again)


def _drop_checkpoints(recipe: Recipe, stage: str) -> None:
    """Leave of a finished stage's checkpoints what the recipe wants kept."""
    if recipe.keep_checkpoints == "all" or not is_main():
        return
    for name in (stage, *STAGES[stage].beside):
        kept = 1 if recipe.keep_checkpoints == "last" else 0
        if gone := checkpoint.keep_newest(stage_dir(recipe, name) / "checkpoints", kept):
            LOG.info("%s: %d checkpoints removed (keep_checkpoints=%s)", name, gone, recipe.keep_checkpoints)


def require_inputs(recipe: Recipe, stage: str) -> None:
    """Raises MissingFileError with the command to run when a model that `stage` starts from is not there."""
    missing = missing_inputs(recipe, stage)
    if missing:
        first = missing[0]
        raise MissingFileError(
            f"stage '{stage}' starts from {' and '.join(missing)}, not finished in {recipe.output_dir}: "
            f"run `{STAGES[first].command}` first, or the whole chain with `align run RECIPE`"
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
    meet()


def _world_sets(recipe: Recipe, stage: str) -> dict[str, Path]:
    sources = [source for _, source in stage_sources(recipe, stage) if source.path.startswith(WORLD)]
    return {source.path.removeprefix(WORLD): source_path(recipe, source) for source in sources}


def meet() -> None:
    """A barrier, at which ranks get to know each other: none looks at the files before the first one has written or
    removed them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=patience()).wait_for_everyone()
