"""Going round: `align run` of a recipe with `rounds`.

What runs once is a chain in `output_dir`; each round after it a chain of its own in `round-N`, by a recipe that follows
from the user's (`align.recipe.rounds`). Before its stages a round collects replies, has them judged and merges what was
said: `round-N/feedback`. Where people judge, the command ends until they have; the same command goes on.

Everything is found by what lies there, so a run that was killed goes on as if it never was. What is started anew, and
when, is said for each chain by `align.stages.redo`; what was made from it are the rounds after it, which go too. A
round starts anew as a whole where the keys of `collect` or the judge changed. What people said is never removed
unasked.
"""

from __future__ import annotations

import gc
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from align.feedback.collect import ITEMS, PIECES, collect
from align.feedback.items import load_items
from align.feedback.judge import judge_items
from align.feedback.judgments import JudgmentBook, adding_to, load_rows
from align.feedback.pairs import write_pairs
from align.feedback.round_evaluation import evaluate_round, judge_of_rounds, print_rounds, trained_on
from align.recipe import Recipe, dump_recipe
from align.recipe.check import collect_problems, rounds_problems, run_problems
from align.recipe.errors import RecipeError
from align.recipe.registry import ROUND_STAGES, STAGES
from align.recipe.rounds import (
    FEEDBACK,
    PAIRS,
    ROUND,
    round_dir,
    round_recipe,
    round_stages,
    rounds_in,
    start_origin,
    start_recipe,
)
from align.recipe.sources import COLLECT, ROUNDS
from align.runs.acceptance import accepting, is_accepted, note
from align.runs.errors import TrainingError
from align.runs.progress import StageProgress
from align.runtime import files
from align.runtime.json_files import read_object
from align.runtime.lock import locked
from align.runtime.memory import memory_errors
from align.runtime.ranks import agree, is_main
from align.runtime.terminal import say
from align.stages import clean, common, redo
from align.stages.chain import meet, prepare_data, refresh_report, run_chain
from align.stages.common import StageStopped, Summary, read_summary, write_summary
from align.stages.recipe_guard import COMMON, RecipeChangedError, collected_otherwise, is_finished, some

JUDGMENTS, MERGED = "judgments.jsonl", "merged.json"
SAID = (MERGED, PAIRS, JUDGMENTS, common.JUDGED)  # removed before what it was said of, and that before the notes
OURS = (PIECES, "summary.json", ".locks", "recipe.yaml", "accepted.json")


class WaitsForPeople(StageStopped):
    """A round's replies are not judged yet; ends the program as what goes on by the same command does."""


@dataclass
class Anew:
    """What the user wants started anew: whole `rounds` from a number on, and of each chain (0: what runs once) its
    stages, or the first of them."""

    rounds: int | None = None
    stages: dict[int, tuple[str, ...]] = field(default_factory=dict)
    start: tuple[int, str] | None = None

    def stages_of(self, recipe: Recipe, number: int) -> tuple[str, ...]:
        """The stages of a round that the user named, one by one or as the first of them."""
        every = round_stages(recipe)
        later = every[every.index(self.start[1]) :] if self.start and self.start[0] == number else ()
        return (*self.stages.get(number, ()), *later)


def run_rounds(
    recipe: Recipe,
    *,
    fresh: bool | Sequence[str] = False,
    start: str | None = None,
    accept: Sequence[str] = (),
    yes: bool | None = None,
) -> Summary:
    """Run what runs once and every round, as far as they are not done; `<output_dir>/summary.json` has a row a round
    under `rounds`.

    Args:
        fresh, start: as of `align.stages.chain.run_chain`; a round is named `round-2`, a stage of it `round-2/ppo`.
        accept, yes: as there.

    Raises:
        AlignError: as of `run_chain`; of `collect`, a judge that failed, judgments that give no comparison.
        RecipeError: no such stage or round.
        NotConfirmedError: what people judged would be removed.
        WaitsForPeople: they have not judged all replies of a round.
        StageStopped: Ctrl-C; the same command continues.
    """
    problems = run_problems(recipe, recipe.stages) + collect_problems(recipe) + rounds_problems(recipe)
    if problems:
        raise RecipeError(problems, recipe.name)
    redo.require_keys(recipe, accept)
    anew = named(recipe, () if isinstance(fresh, bool) else fresh, start)
    meet()
    with locked(recipe.output_dir, [ROUNDS]), accepting(accept):
        if fresh is True:
            told = "--fresh starts the whole run anew"
            redo.confirm(start_recipe(recipe), told, yes is not False, also=_there(recipe, 1))
            anew.rounds = 1
        elif anew.rounds is not None:
            _confirm(recipe, anew.rounds, f"--fresh round-{anew.rounds}", bool(yes))
        if anew.rounds is not None:
            _clear(recipe, anew.rounds)
        rows = []
        for number in range(recipe.rounds.num_rounds + 1):
            _run_one(recipe, number, anew, fresh is True, accept, bool(yes))
            if is_main():
                rows.append(evaluate_round(recipe, number))
        return _finish(recipe, rows)


def named(recipe: Recipe, names: Sequence[str], start: str | None) -> Anew:
    """What `--fresh NAME …` and `--from NAME` mean. Raises RecipeError where there is no such stage or round."""
    found, problems, once = Anew(), [], start_recipe(recipe).stages
    for option, name in [*(("--fresh", name) for name in names), *([("--from", start)] if start else [])]:
        place = ROUND.fullmatch(name)
        number, stage = (int(place[1]), place[2]) if place else (0, name)
        if number > recipe.rounds.num_rounds or (place and number == 0):
            problems.append(f"{option} {name}: the rounds are round-1 to round-{recipe.rounds.num_rounds}")
        elif stage is None:
            found.rounds = min(number, found.rounds or number)
        elif stage not in (round_stages(recipe) if number else once):
            where = f"a round has {', '.join(round_stages(recipe))}; before the rounds run {', '.join(once) or 'none'}"
            hint = f"; say which round's, as in round-1/{stage}" if stage in round_stages(recipe) else ""
            problems.append(f"{option} {name}: has no stage '{stage}' there ({where}){hint}")
        elif option == "--from":
            found.start = (number, stage)
        else:
            found.stages[number] = (*found.stages.get(number, ()), stage)
    if problems:
        raise RecipeError(problems, recipe.name)
    return found


def _run_one(recipe: Recipe, number: int, anew: Anew, fresh: bool, accept: Sequence[str], yes: bool) -> None:
    """What runs once (number 0), or a round."""
    chain = round_recipe(recipe, number) if number else start_recipe(recipe)
    if number:
        if is_main():
            say(f"\nround {number} of {recipe.rounds.num_rounds}", flush=True)
        _settle_feedback(recipe, number, yes)
        if is_main() and set(_readers(recipe)) <= set(anew.stages_of(recipe, number)):
            clean.remove(round_dir(recipe, number) / FEEDBACK, (MERGED,))  # people may have said more since
        _collect_and_judge(recipe, number)
    if chain.stages:
        known = [key for key in accept if getattr(chain, key.partition(".")[0], None) is not None]
        how = {"fresh": True} if fresh and not number else {"fresh": anew.stages.get(number, ())}
        start = anew.start[1] if anew.start and anew.start[0] == number else None
        later = partial(_clear_later, recipe, number, chain, yes)
        run_chain(chain, **how, start=start, accept=known, yes=True if fresh else yes, settled=later)
    if not number:
        _prepare(recipe)


def _prepare(recipe: Recipe) -> None:
    """What all rounds read that the run itself makes: sets of the embedded world, a model that was given tokens."""
    if start_origin(recipe).kind == "path":
        common.origin_path(recipe, start_origin(recipe), stage=round_stages(recipe)[0])
    for stage in (*round_stages(recipe), COLLECT, ROUNDS):
        prepare_data(recipe, stage)
    if is_main() and (told := trained_on(recipe)):
        common.LOG.warning("%s", told)


def _settle_feedback(recipe: Recipe, number: int, yes: bool) -> None:
    """Start the round anew where what decides its replies and judgments changed, and note what that is now."""
    folder, now = round_dir(recipe, number) / FEEDBACK, round_recipe(recipe, number)
    now = now.model_copy(update={"rounds": recipe.rounds})
    changed = collected_otherwise(now, folder) if (folder / ITEMS).is_file() or (folder / PIECES).is_dir() else []
    accepted = [one for one in changed if is_accepted(one.key)]
    changed = [one for one in changed if one not in accepted]
    if changed:
        why = some(list(map(str, changed)))
        if any(one.key.partition(".")[0] in COMMON for one in changed):
            gone = _there(recipe, number)
            told = f"{why}, which is another run"
            redo.confirm(start_recipe(recipe), told, yes, RecipeChangedError, stages=(), also=gone)
        else:
            _confirm(recipe, number, why, yes)
        if is_main():
            say(f"round {number}: starts anew ({why}); removed: {', '.join(_there(recipe, number))}", flush=True)
        _clear(recipe, number)
    note(folder, [{"key": one.key, "was": one.was, "is": one.now} for one in accepted])
    if is_main() and not accepted:
        files.write_text(folder / "recipe.yaml", dump_recipe(now))
        files.write_text(
            round_dir(recipe, number) / "recipe.yaml", dump_recipe(now.model_copy(update={"rounds": None}))
        )
    meet()


def _collect_and_judge(recipe: Recipe, number: int) -> None:
    """`round-N/feedback` with `pairs.jsonl`, and `merged.json` as the last file of all.

    Raises:
        WaitsForPeople: a reply is not judged.
    """
    folder = round_dir(recipe, number) / FEEDBACK
    done = folder / MERGED
    told = "the first rank could not collect or judge replies (see its message)"
    mine = is_main() and not done.is_file()
    agree(partial(_make_pairs, recipe, number, folder), lambda _: TrainingError(told), mine=mine)
    meet()
    if is_main() and not mine:
        _tell_later_judgments(recipe, number, folder)
    if not done.is_file():
        items, judged = _judged_by_people(folder)
        command = shlex.join(["align", "annotate", str(folder / ITEMS)])
        raise WaitsForPeople(
            f"round {number} waits for people, who have judged {judged} of {items} items: `{command}` shows them"
        )


def _readers(recipe: Recipe) -> list[str]:
    """The stages of a round that read what was judged."""
    return [stage for stage in round_stages(recipe) if STAGES[stage].records == "Comparison"]


def _tell_later_judgments(recipe: Recipe, number: int, folder: Path) -> None:
    """Say how much was said since the round's comparisons were made, and how to have it among them."""
    counted = (read_object(folder / MERGED, "remove it to merge the judgments again") or {}).get("rows")
    more = len(load_rows(folder / JUDGMENTS)) - counted if counted is not None else 0
    if more > 0:
        names = " ".join(f"round-{number}/{stage}" for stage in _readers(recipe))
        say(
            f"round {number}: {more} judgments or undos came after its comparisons were made and do not count; "
            f"--fresh {names} makes them anew with all of them",
            flush=True,
        )


def _judged_by_people(folder: Path) -> tuple[int, int]:
    """How many items there are, and how many of them somebody judged."""
    items, counting = load_items(folder / ITEMS), JudgmentBook(load_rows(folder / JUDGMENTS)).counting()
    judged = {one.item for one in counting}
    return len(items), sum(item.id in judged for item in items)


def _make_pairs(recipe: Recipe, number: int, folder: Path) -> None:
    own = round_recipe(recipe, number)
    collect(own, own.collect, folder, round=number)
    if recipe.rounds.by_people:
        items, judged = _judged_by_people(folder)
        if judged < items:
            return
    items, judgments = load_items(folder / ITEMS), folder / JUDGMENTS
    if not recipe.rounds.by_people:
        judge = judge_of_rounds(recipe, folder)
        settings = recipe.model_dump(mode="json", include={"rounds"})["rounds"]["judge"]
        with (
            adding_to(judgments),
            memory_errors(f"the judge of round {number}", "rounds.judge.batch_size"),
            StageProgress(f"round {number}: judged", len(items)) as progress,
        ):
            by_judge = judge_items(judge, items, judgments, settings=settings, told=progress.update)
        del judge
        gc.collect()
        if by_judge.without:
            lacking = ", ".join(f"{count} {reason}" for reason, count in by_judge.without.items())
            note = f" (the first time: {by_judge.note})" if by_judge.note else ""
            say(f"round {number}: of {len(items)} items not judged: {lacking}{note}", file=sys.stderr, flush=True)
    rows = load_rows(judgments)
    figures = write_pairs(items, rows, folder / PAIRS, source=judgments)
    files.write_json(folder / MERGED, common.finite(figures | {"rows": len(rows)}))
    say(f"round {number}: {figures['comparisons']} comparisons of {figures['judgments']} judgments", flush=True)


def _clear_later(recipe: Recipe, number: int, chain: Recipe, yes: bool) -> None:
    """Rounds after a chain that has yet to run, or to run again, are of other models than it will leave."""
    if all(is_finished(chain, stage) for stage in chain.stages) or not _there(recipe, number + 1):
        return
    what = f"round {number}" if number else f"what runs before the rounds ({', '.join(chain.stages)})"
    _confirm(recipe, number + 1, f"{what} is not finished, and later rounds were made from it", yes)
    if is_main():
        say(f"{what} runs; removed what was made from it: {', '.join(_there(recipe, number + 1))}", flush=True)
    _clear(recipe, number + 1)


def _numbers(recipe: Recipe, first: int) -> list[int]:
    found = (int(folder.name.removeprefix("round-")) for folder in rounds_in(Path(recipe.output_dir)))
    return [number for number in found if number >= first]


def _there(recipe: Recipe, first: int) -> list[str]:
    """Words for the rounds that are there, from a number on."""
    return [f"round {number}" for number in _numbers(recipe, first)]


def _confirm(recipe: Recipe, first: int, why: str, yes: bool) -> None:
    """Have the user agree where people judged in one of the rounds that would be removed."""
    folders = ((number, round_dir(recipe, number) / FEEDBACK) for number in _numbers(recipe, first))
    said = [
        f"{judged} judgments of people (round {number})"
        for number, folder in folders
        if _is_of_people(folder) and (judged := len(load_rows(folder / JUDGMENTS)))
    ]
    if said:
        redo.confirm(start_recipe(recipe), why, yes, stages=(), also=[*_there(recipe, first), *said])


def _is_of_people(folder: Path) -> bool:
    """Whether the judgments in a round's folder may be people's."""
    from align.runs.reading import read_recipe

    judge = (read_recipe(folder / "recipe.yaml").get("rounds") or {}).get("judge") or {}
    return judge.get("kind", "people") == "people"


def _clear(recipe: Recipe, first: int) -> None:
    """Remove the rounds from a number on, the last first, file by file as far as they are ours."""
    if is_main():
        for number in reversed(_numbers(recipe, first)):
            folder = round_dir(recipe, number)
            clean.clear_stages(round_recipe(recipe, number), ROUND_STAGES)
            compared = [file.name for file in (folder / FEEDBACK).glob(".*.compared")]
            for names in ((*SAID, *compared), (ITEMS,), OURS):
                clean.remove(folder / FEEDBACK, names)
            clean.remove(folder, ("report", ".locks", "recipe.yaml"))
    meet()


def _finish(recipe: Recipe, rows: list[Summary]) -> Summary:
    """Write the run's summary, and show what came of the rounds."""
    if not is_main():
        return {}
    root = Path(recipe.output_dir)
    seconds = {f"round {number}": _seconds(recipe, number) for number in range(1, recipe.rounds.num_rounds + 1)}
    found = read_summary(root) or {"name": recipe.name, "seed": recipe.seed, "output_dir": recipe.output_dir}
    found |= {"rounds": rows, "seconds": found.get("seconds", {}) | seconds}
    summary = write_summary(root, found)
    refresh_report(recipe, root)
    print_rounds(recipe, rows)
    return summary


def _seconds(recipe: Recipe, number: int) -> float:
    found = read_summary(round_dir(recipe, number)) or {}
    return round(sum(found.get("seconds", {}).values()), 2)
