"""What is done anew, or goes on for longer, when a recipe is not the one that its stages were made with.

A finished stage whose keys changed is started anew, with all that builds on it, after a line that says so; nothing else
is touched. One that is to be longer, and nothing else, goes on from its last checkpoint. A stage that was begun with
other keys could do either, so the user is asked to say which. A change of what every stage shares (seed, model, data
root, world) is a change of the whole run and wants the consent that `--fresh` wants.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from align.recipe import STAGES, Recipe
from align.recipe.errors import RecipeError, did_you_mean
from align.recipe.lineage import stage_dir
from align.runs.acceptance import accepted, note
from align.runtime.errors import AlignError
from align.runtime.json_files import read_object
from align.runtime.lock import locked
from align.runtime.ranks import any_rank, is_main
from align.runtime.terminal import say
from align.stages import clean
from align.stages.best_checkpoint import BEST, put_back
from align.stages.common import LOG, read_summary, write_summary
from align.stages.recipe_guard import (
    COMMON,
    Change,
    Longer,
    RecipeChangedError,
    accepted_changes,
    ancestors,
    changes,
    descendants,
    differences,
    is_begun,
    is_finished,
    longer,
    needs,
    some,
)

FIXED = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "optimizer")
"""What a checkpoint's optimizer brings back: a resumed stage would not follow a change."""


class NotConfirmedError(AlignError, RuntimeError):
    """Finished work would be removed, and nobody said yes."""


@dataclass
class Plan:
    """What is to be done with the stages that are there.

    Attributes:
        anew: a stage to start anew -> why, `""` where the user named it; what builds on it is not in here.
        longer: stages that go on for longer.
        refused: the changes of stages that were begun and may neither go on nor be removed unasked.
        common: all changes, where one is of what every stage shares.
        accepted: a stage -> the changes that it goes on with.
    """

    anew: dict[str, str] = field(default_factory=dict)
    longer: dict[str, Longer] = field(default_factory=dict)
    refused: dict[str, list[Change]] = field(default_factory=dict)
    common: list[Change] = field(default_factory=list)
    accepted: dict[str, list[Change]] = field(default_factory=dict)


def require_keys(recipe: Recipe, keys: Sequence[str]) -> None:
    """Raises RecipeError for a key of `--accept` that the recipe has not."""
    problems = []
    for key in keys:
        place, known = recipe.model_dump(mode="json"), True
        for part in key.split("."):
            inner = dict(enumerate(place)) if isinstance(place, list) else place
            part = int(part) if isinstance(place, list) and part.isdecimal() else part
            known = known and isinstance(inner, dict) and part in inner
            near = did_you_mean(str(part), [str(name) for name in inner]) if isinstance(inner, dict) else None
            if not known:
                problems.append(f"--accept {key}: no such key" + (f"; did you mean '{near}'?" if near else ""))
                break
            place = inner[part]
    if problems:
        raise RecipeError(problems, recipe.name)


def named_stages(recipe: Recipe, names: Sequence[str], start: str | None) -> tuple[str, ...]:
    """The stages that `--fresh NAME …` and `--from NAME` mean. Raises RecipeError where the recipe lacks one."""
    has = f"it has {', '.join(recipe.stages) or 'none'}"
    given = [("--fresh", name) for name in names] + ([("--from", start)] if start else [])
    problems = [f"{option} {name}: has no stage '{name}'; {has}" for option, name in given if name not in recipe.stages]
    if problems:
        raise RecipeError(problems, recipe.name)
    later = recipe.stages[recipe.stages.index(start) :] if start else ()
    return tuple(stage for stage in STAGES if stage in names or stage in later)


def plan(recipe: Recipe, stages: Sequence[str], named: Sequence[str] = ()) -> Plan:
    """Compare what lies in the folders of `stages` with the recipe; changes nothing.

    Args:
        named: the stages that the user wants anew.

    Raises:
        RecipeError: a change is accepted that a resumed stage would not follow.
        RecipeChangedError: a stage builds on another one (not in `stages`) that was made with another recipe.
        RunFileError: a recipe.yaml that cannot be read.
    """
    found = Plan(anew=dict.fromkeys(named, ""))
    for stage in stages:
        changed_before = {*found.anew, *found.longer, *found.refused} & set(ancestors(recipe, stage))
        if changed_before or not is_begun(recipe, stage):
            continue  # it goes with what it builds on, or there is nothing of it
        folder = stage_dir(recipe, stage)
        if noted := accepted_changes(recipe, stage, folder):
            if not is_finished(recipe, stage):
                _require_followed(recipe, stage, noted)
            found.accepted[stage] = noted
        changed = changes(recipe, stage, folder)
        if not changed:
            continue
        common = any(one.key.partition(".")[0] in COMMON for one in changed)
        if common:
            found.common = found.common or _all_changes(recipe, stages)
        found_longer = None if common else longer(recipe, stage, changed)
        if found_longer is not None and found_longer.checkpoint is not None:
            _require_followed(recipe, stage, differences(recipe, stage, folder))
            found.longer[stage] = found_longer
        elif found_longer is not None and not is_finished(recipe, stage):
            continue  # nothing of it is kept yet
        elif is_finished(recipe, stage) or common:
            _require_fresh_parents(recipe, stage)
            found.anew[stage] = some(list(map(str, changed))) + needs(found_longer)
        else:
            found.refused[stage] = changed
    return found


def _require_followed(recipe: Recipe, stage: str, noted: list[Change]) -> None:
    """A stage that trains on goes on with what its checkpoint brings back, so a change of that would be none."""
    if fixed := _fixed(stage, noted):
        sentence = "comes back with the optimizer of the checkpoint, whatever the recipe says"
        raise RecipeError([f"--accept {fixed[0].key}: {sentence}; start anew with --fresh {stage}"], recipe.name)


def _fixed(stage: str, changed: list[Change]) -> list[Change]:
    return [one for one in changed if one.key.rpartition(".")[2] in FIXED and one.key.partition(".")[0] == stage]


def _all_changes(recipe: Recipe, stages: Sequence[str]) -> list[Change]:
    begun = [stage for stage in stages if is_begun(recipe, stage)]
    every = [one for stage in begun for one in changes(recipe, stage, stage_dir(recipe, stage))]
    return [one for at, one in enumerate(every) if one not in every[:at]]


def _require_fresh_parents(recipe: Recipe, stage: str) -> None:
    """What a stage is started anew from must have been made with this recipe."""
    if told := _of_another_recipe(recipe, stage):
        raise RecipeChangedError(told)


def warn_of_stale_parents(recipe: Recipe, stage: str) -> None:
    """Say that a stage that a user starts by itself builds on one that was made with another recipe."""
    if is_main() and (told := _of_another_recipe(recipe, stage)):
        LOG.warning("%s", told)


def _of_another_recipe(recipe: Recipe, stage: str) -> str | None:
    for parent in ancestors(recipe, stage):
        folder = stage_dir(recipe, parent)
        if parent != stage and is_finished(recipe, parent) and (stale := changes(recipe, parent, folder)):
            return (
                f"'{stage}' builds on '{parent}', which was made with another recipe ({some(list(map(str, stale)))}): "
                f"run `{STAGES[parent].command}` with this recipe first, or the whole chain with `align run RECIPE`"
            )
    return None


def carry_out(recipe: Recipe, found: Plan, *, yes: bool = False, alone: bool = False) -> None:
    """Say what is done, and do it. Every rank calls it, once all have made the plan.

    Args:
        yes: consent to a change of the whole run is given.
        alone: one stage runs by itself, and its lock is held.

    Raises:
        RecipeChangedError: an unfinished stage was begun with other keys, or, without a terminal to ask, those that
            every stage shares changed.
        NotConfirmedError: the answer was no.
        FolderInUseError: another process runs a stage that would be removed.
    """
    if found.common:
        why = f"{some(list(map(str, found.common)))}, which is another run"
        confirm(recipe, why, yes, RecipeChangedError, tuple(found.anew) if alone else None)
    elif found.refused:
        _refuse(recipe, found.refused)
    stages = tuple(stage for stage in STAGES if stage in {*found.anew, *found.longer})
    gone = descendants(recipe, stages)
    with locked(recipe.output_dir, gone[1:] if alone else gone):
        if is_main():
            _tell(recipe, found, gone, alone)
            for stage, noted in found.accepted.items():
                _note(recipe, stage, noted)
            for stage, one in found.longer.items():
                _lengthen(recipe, stage, one)
            for stage in found.anew:
                clean.clear_stages(recipe, (stage,))
            if found.common and not alone:
                clean.clear_chain(recipe)  # with the world


def confirm(
    recipe: Recipe,
    why: str,
    yes: bool,
    error: type[AlignError] = NotConfirmedError,
    stages: tuple[str, ...] | None = None,
    also: Sequence[str] = (),
) -> None:
    """Have the user agree that the whole run, or these stages with what was made from them, are removed; the first rank
    asks. Nothing to remove needs no consent.

    Args:
        also: words for what else is removed.

    Raises:
        NotConfirmedError: the answer was no.
        error: there is no terminal to ask at, and `yes` is not given.
    """
    doomed = [*(clean.whole_run(recipe) if stages is None else clean.doomed(recipe, stages) if stages else []), *also]
    if not doomed:
        return
    what, silent, refused = f"{recipe.output_dir}: {why}; this removes {', '.join(doomed)}", False, False
    if is_main() and not yes:
        silent = sys.stdin is None or not sys.stdin.isatty()
        refused = not silent and input(f"{what}. Go on? [y/N] ").strip().lower() not in ("y", "yes")
    elif is_main():
        say(what, flush=True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        silent, refused = any_rank(silent), any_rank(refused)
    if silent:
        option = "--yes" if error is NotConfirmedError else "--fresh --yes"
        raise error(
            f"{what}: give {option} to start that anew, --fresh STAGE to start what you name anew, or choose "
            "another output_dir"
        )
    if refused:
        raise NotConfirmedError("nothing was removed")


def _refuse(recipe: Recipe, refused: dict[str, list[Change]]) -> None:
    stage, changed = next(iter(refused.items()))
    keys = " ".join(f"--accept {one.key}" for one in changed)
    accept = "" if _fixed(stage, changed) else f"go on with the change ({keys}), "
    raise RecipeChangedError(
        f"{recipe.output_dir}: '{stage}' was begun with another recipe and is not finished "
        f"({some(list(map(str, changed)))}): {accept}start it anew (--fresh {stage}), or put the old value back"
    )


def _tell(recipe: Recipe, found: Plan, gone: Sequence[str], alone: bool) -> None:
    for stage in (stage for stage in STAGES if stage in {*found.anew, *found.longer}):
        also = clean.made_from(recipe, (stage,))
        removed = f"; removed what was made from it: {', '.join(also)}" if also else ""
        if stage in found.longer:
            say(f"{found.longer[stage]}{removed}", flush=True)
            continue
        why = f" ({found.anew[stage]})" if found.anew[stage] else ""
        if also or why or (not alone and is_begun(recipe, stage)):
            say(f"{stage}: starts anew{why}{removed}", flush=True)
    kept = [stage for stage in recipe.stages if stage not in gone and is_begun(recipe, stage)]
    if gone and kept and not alone:
        say(f"kept as they are: {', '.join(kept)}", flush=True)
    for stage, noted in found.accepted.items():
        say(f"{stage}: goes on although {some(list(map(str, noted)))}; noted in {stage}/accepted.json", flush=True)


def _note(recipe: Recipe, stage: str, noted: list[Change]) -> None:
    """Write down what a stage goes on with; a finished one tells it in its summary at once."""
    folder = stage_dir(recipe, stage)
    note(folder, [{"key": one.key, "was": one.was, "is": one.now} for one in noted])
    if summary := read_summary(folder):
        write_summary(folder, summary | {"accepted": accepted(folder)})


def _lengthen(recipe: Recipe, stage: str, one: Longer) -> None:
    """Take the mark of being finished from a stage, so that it goes on; what was made from it goes."""
    folder = stage_dir(recipe, stage)
    summary = read_summary(folder)
    later = tuple(name for name in descendants(recipe, (stage,)) if name != stage)
    clean.clear_chain_results(recipe)
    for name in later:
        clean.clear_stages(recipe, (name,))
    clean.clear_beside(recipe, stage)
    if summary and "best_score" in summary:
        state = read_object(folder / "checkpoints" / f"step-{one.checkpoint}" / "trainer_state.json", "") or {}
        if state.get("best_global_step") != summary["best_step"]:  # evaluated after the checkpoint: not in a longer run
            shutil.rmtree(folder / BEST, ignore_errors=True)
    if summary and "best_heldout_loss" in summary and not (folder / BEST).exists():
        put_back(folder, summary)
    (folder / "summary.json").unlink(missing_ok=True)
