"""What judgments cost and what they bring, on the embedded world, with annotators who are played.

    python examples/experiments/feedback.py RUN [RUN …] --out FOLDER [--repeats N] [--table NAME …]

Each RUN is the output folder of a finished `align quickstart`, one a seed. Its SFT and PPO models reply to the same
prompts (`align.feedback.collect`), annotators whose errors are known (`annotators.py`) compare two replies at a time,
and what they say is merged and trained on by the functions of the commands themselves. Everything is kept under FOLDER;
a program that was stopped goes on. The tables:

errors     `align merge-judgments` tells how often each annotator is wrong and leans to what was shown first, without
           knowing the better reply: what it says of pairs that all of a team judged, beside the truth.
choices    `align collect --budget 250 --choose …`, four times, each time by the reward model of the judgments so far,
           which begins as the run's PMP model: accuracy by the gold score on every two replies of other prompts.
promises   what the learning curve of a reward model promised of the next judgments, and what they brought.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where annotators.py is found under its full name

from align.data.replies import PromptedReply
from align.evaluation.scoring import judge_replies
from align.feedback.annotators import choices_of
from align.feedback.budget import choose_items
from align.feedback.choosing import CHOICES, Choice, pairs_of
from align.feedback.collect import ITEMS, collect
from align.feedback.error_rates import error_rates
from align.feedback.items import FeedbackItem, load_items
from align.feedback.judge import judge_items
from align.feedback.judgments import load_judgments
from align.feedback.learning_curve import curve_of
from align.feedback.merge import MergeOptions, merge
from align.feedback.votes import Vote, matched, votes_of
from align.recipe import Recipe, load_recipe
from align.recipe.collect_section import CollectSection
from align.recipe.fields import Source
from align.recipe.lineage import Origin
from align.runs.launch import guarded, prepare
from align.runs.seeding import derive
from align.runtime.errors import MissingFileError
from align.runtime.files import write_json
from align.runtime.json_files import read_object
from align.runtime.lock import locked
from align.serving.named import named_judge, named_reward
from align.stages.run_reward import train_reward
from align.tinyworld.gold import GoldScore
from data_formats import write_jsonl
from examples.experiments.annotators import Annotator, annotate, gold_of

PROMPTS, REPLIES, HELDOUT_REPLIES = 1000, 4, 6
BATCH, BATCHES = 250, 4  # judgments of a choice, and how many choices follow on one another
ERROR = 0.1  # of the annotator that reward models learn from
CHUNKS = (250, 1000, 4000)  # pairs that a whole team judges
RESAMPLES = 40  # of the intervals of error rates
NEAR = 0.03  # within which an error rate is to be recovered
RM = "rm"


def people(*errors: float, position: float = 0.0) -> list[Annotator]:
    """A team: a name and an error each, percentages; the same position bias."""
    return [Annotator(name, error / 100, position / 100) for name, error in zip("abcdef", errors, strict=False)]


TEAMS: dict[str, list[Annotator]] = {
    **{f"two of {e} %": people(e, e) for e in (5, 10, 20, 30)},
    **{f"two of {e} %, leaning": people(e, e, position=10) for e in (5, 10, 20, 30)},
    "three of 30 %": people(30, 30, 30),
    "three unlike": people(10, 20, 30),
    "three unlike, leaning": people(10, 20, 30, position=10),
    "five unlike": people(5, 10, 20, 30, 30),
    "two unlike": people(10, 30),
    "two unlike and the reward model": people(10, 30),
}


class World:
    """One finished run, what it replied, and where figures about it are kept."""

    def __init__(self, run: Path, out: Path):
        file = run / "rm" / "recipe.yaml"
        if not (run / "summary.json").is_file() or not file.is_file():
            raise MissingFileError(f"{run} holds no finished chain: name the folder of an `align quickstart`")
        self.run = run
        self.recipe: Recipe = load_recipe(file, [f"output_dir={run}"])
        self.out = out / f"seed-{self.recipe.seed}"
        self.gold: GoldScore = gold_of(run)
        self.pool = self._collected("pool", "tinyworld:prompts", PROMPTS, REPLIES)
        self.heldout = self._collected("heldout", "tinyworld:eval_prompts", None, HELDOUT_REPLIES)

    def _collected(self, name: str, data: str, prompts: int | None, replies: int) -> list[FeedbackItem]:
        lengths = {"max_prompt_length": 64, "max_completion_length": 40}
        sources = [{"model": "sft"}, {"model": "ppo"}]
        said = {"data": [data], "sources": sources, "num_prompts": prompts, "num_replies": replies}
        collect(self.recipe, CollectSection.model_validate(said | lengths), self.out / name)
        return load_items(self.out / name / ITEMS)

    def worth(self, items: Sequence[FeedbackItem]) -> dict[tuple[str, str], float]:
        """The gold score of each reply of each item."""
        found = {(item.id, one.id): (item.prompt[-1].content, one.reply) for item in items for one in item.replies}
        return {key: self.gold.judge(*said).score for key, said in found.items()}

    def accuracy(self, model: str | Path) -> float:
        """Share of the held-out pairs of different gold scores that a reward model puts in their order."""
        asked = [PromptedReply(item.prompt, one.reply, item.tools) for item in self.heldout for one in item.replies]
        scores = iter(judge_replies(named_reward(str(model)).reward, asked)[0].scores)
        said = {(item.id, one.id): next(scores) for item in self.heldout for one in item.replies}
        worth = self.worth(self.heldout)
        keys = [((p.item.id, p.first.id), (p.item.id, p.second.id)) for p in pairs_of(self.heldout)]
        return fmean((said[a] > said[b]) == (worth[a] > worth[b]) for a, b in keys if worth[a] != worth[b])

    @cached_property
    def start(self) -> float:
        """The accuracy before any judgment."""
        return self.accuracy(self.run / "pmp")


def errors_of(world: World) -> list[dict[str, Any]]:
    """Of every team, number of pairs and annotator what was found of disjoint sets of so many pairs.

    Returns:
        Rows with `team`, `pairs`, `annotator`, the true `wrong` and `position`, and `found`: an `ErrorRate` a set.
    """
    file = world.out / "errors.json"
    if (kept := read_object(file, "remove it to have it made anew")) is not None:
        return kept["rows"]
    chosen = world.out / "errors" / "pairs.jsonl"
    choose_items(world.pool, CHUNKS[-1], "random", chosen, seed=world.recipe.seed)
    items = load_items(chosen)
    rows = [row for name in TEAMS for row in _team(world, name, items)]
    write_json(file, {"rows": rows})
    return rows


def _team(world: World, name: str, items: Sequence[FeedbackItem]) -> Iterator[dict[str, Any]]:
    place = world.out / "errors" / f"{name}.jsonl"
    annotate(items, place, TEAMS[name], world.gold)
    truth = {who.name: (who.wrong, who.position) for who in TEAMS[name]}
    if "reward model" in name:
        judge_items(named_judge(str(world.run / RM)), items, place, name=RM, settings={})
        truth[RM] = (_wrong(world, items, place), 0.0)
    votes: dict[str, list[Vote]] = defaultdict(list)
    for item, one in matched(items, load_judgments(place))[0]:
        votes[one.annotator] += votes_of(item, one)
    choices = choices_of(votes)
    for size in CHUNKS:
        found: dict[str, list[dict[str, float]]] = defaultdict(list)
        for start in range(0, CHUNKS[-1], size):
            some = {item.id for item in items[start : start + size]}
            own = {who: {pair: said[pair] for pair in said if pair[0] in some} for who, said in choices.items()}
            for who, error in error_rates(own, resamples=RESAMPLES, seed=start).items():
                found[who].append(asdict(error))
        for who, (wrong, position) in truth.items():
            about = {"team": name, "pairs": size, "annotator": who, "wrong": wrong, "position": position}
            yield about | {"found": found[who]}


def _wrong(world: World, items: Sequence[FeedbackItem], place: Path) -> float:
    """How often the reward model's choices are wrong, among pairs that have a better reply."""
    worth = world.worth(items)
    best = {one.item: one.ranking for one in load_judgments(place) if one.annotator == RM}
    pairs = [
        (item.id, *(worth[item.id, rank[0]] for rank in best[item.id])) for item in items if len(best[item.id]) > 1
    ]
    return fmean(better < worse for _, better, worse in pairs if better != worse)


def learn(world: World, how: Choice, repeat: int) -> list[dict[str, Any]]:
    """Choose, judge and train, batch by batch.

    Returns:
        A row a batch: `judgments` and `comparisons` so far, `accuracy` after them, and what the curve of the model
        before `promised` for this batch (None for the first; `Curve.gain`).
    """
    place = world.out / "choices" / f"{how}-{repeat}"
    known: list[FeedbackItem] = []
    before, rows = world.run / "pmp", []
    for batch in range(BATCHES):
        step = place / str(batch)
        row = read_object(step / "row.json", f"remove {step} to have it made anew")
        chosen = step / "chosen.jsonl"
        if row is None:
            seed = derive(world.recipe.seed, how, repeat, batch)
            curve = curve_of(before) if batch else None
            rewards = [str(before)] if how == "uncertain" else []
            choose_items(world.pool, BATCH, how, chosen, rewards=rewards, without=known, seed=seed)
            row = {"promised": curve and curve.gain(BATCH)}
            row |= _trained(world, known + load_items(chosen), step, repeat)
            write_json(step / "row.json", row)
        known += load_items(chosen)
        before = step / RM
        rows.append(row)
    return rows


def _trained(world: World, items: Sequence[FeedbackItem], step: Path, repeat: int) -> dict[str, Any]:
    """Have the items judged, merge, and train a reward model on it from the run's PMP model."""
    shutil.rmtree(step / RM, ignore_errors=True)
    annotate(items, step / "judgments.jsonl", [Annotator("ann", ERROR, seed=repeat)], world.gold)
    judged, _ = matched(items, load_judgments(step / "judgments.jsonl"))
    merged = merge(judged, MergeOptions())
    data, recipe = step / "pairs.jsonl", world.recipe
    write_jsonl(data, merged.comparisons)
    heldout = world.run / "world" / "heldout_comparisons.jsonl"
    changes = {
        "data": (Source(path=str(data.resolve())),),
        "eval_data": (Source(path=str(heldout.resolve()), limit=8),),  # measured is below, on other pairs
        "num_train_epochs": 2.0,
        "warmup_steps": 4,
        "logging_steps": 1,
        "center_scores": False,
    }
    section = recipe.rm.model_copy(update=changes)
    origin = Origin("path", str(world.run / "pmp" / "model"))
    train_reward(recipe, section, origin, step / RM, derive(recipe.seed, "judged", repeat, len(items)))
    shutil.rmtree(step / RM / "checkpoints", ignore_errors=True)
    accuracy = world.accuracy(step / RM)
    return {"judgments": len(items), "comparisons": len(merged.comparisons), "accuracy": accuracy}


def errors_table(worlds: Sequence[World]) -> Iterator[str]:
    """A row a team and true rate: what was found by the number of pairs that everybody judged, mean and standard
    deviation, in brackets the share near the truth; how many intervals hold it; the lean to what was shown first."""
    sizes = [f"{size} pairs" for size in CHUNKS]
    yield _line("annotators", "wrong", *sizes, "intervals that hold it", "lean", f"found at {CHUNKS[-1]}")
    yield _line("---", *["---:"] * (len(sizes) + 4))
    by: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in (row for world in worlds for row in errors_of(world)):
        by[row["team"], RM if row["annotator"] == RM else f"{row['wrong']:.3f}"].append(row)
    for (team, who), rows in by.items():
        own = [(row["wrong"], row["pairs"], one) for row in rows for one in row["found"]]
        cells = [f"{100 * fmean(row['wrong'] for row in rows):.1f}"]
        for size in CHUNKS:
            rates = [one["rate"] for _, pairs, one in own if pairs == size]
            near = fmean(abs(one["rate"] - truth) <= NEAR for truth, pairs, one in own if pairs == size)
            cells.append(f"{100 * fmean(rates):.1f} ± {100 * pstdev(rates):.1f} ({100 * near:.0f} %)")
        cells.append(f"{100 * fmean(one['low'] <= truth <= one['high'] for truth, _, one in own):.0f} %")
        leans = [one["lean"] for _, pairs, one in own if pairs == CHUNKS[-1]]
        cells += [f"{100 * rows[0]['position']:.0f}", f"{100 * fmean(leans):.1f} ± {100 * pstdev(leans):.1f}"]
        yield _line(f"{team}: the model" if who == RM else team, *cells)


def choices_table(worlds: Sequence[World], repeats: int) -> Iterator[str]:
    """A row a way of choosing: accuracy by judgments, and with how many of them it is as good as random at its end."""
    runs: dict[str, list[list[dict[str, Any]]]] = {how: [] for how in CHOICES}
    for at, world, how in product(range(repeats), worlds, CHOICES):
        runs[how].append(learn(world, how, at))
    counts = [row["judgments"] for row in runs["random"][0]]
    start = fmean(world.start for world in worlds)
    goal = fmean(run[-1]["accuracy"] for run in runs["random"])
    yield _line("--choose", "0", *map(str, counts), "comparisons of them", f"judgments to {100 * goal:.1f} %")
    yield _line("---", *["---:"] * (len(counts) + 3))
    for how, own in runs.items():
        by_count = list(zip(*([row["accuracy"] for row in run] for run in own), strict=True))
        cells = [f"{100 * fmean(values):.1f} ± {100 * error(values):.1f}" for values in by_count]
        needed = reached([0, *counts], [start, *map(fmean, by_count)], goal)
        share = fmean(run[-1]["comparisons"] / run[-1]["judgments"] for run in own)
        words = f"more than {counts[-1]}" if needed is None else f"{needed:.0f} ({100 * needed / counts[-1]:.0f} %)"
        yield _line(how, f"{100 * start:.1f}", *cells, f"{100 * share:.0f} %", words)


def error(values: Sequence[float]) -> float:
    """Of the mean, one standard error."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def reached(counts: Sequence[int], accuracies: Sequence[float], goal: float) -> float | None:
    """With how many judgments the goal is reached, on straight lines between the counts; None: it is not."""
    for at in range(1, len(counts)):
        low, high = accuracies[at - 1 : at + 1]
        if low < goal <= high:
            return counts[at - 1] + (counts[at] - counts[at - 1]) * (goal - low) / (high - low)
    return None


def promises_table(worlds: Sequence[World], repeats: int) -> Iterator[str]:
    """A row a batch: what it cost to gain a point, what was promised, and what came."""
    head = ("--choose", "judgments", "gain, points", "judgments a point", "promised", "error that was told")
    yield _line(*head)
    yield _line("---", *["---:"] * (len(head) - 1))
    for how in CHOICES:
        runs = [(world, learn(world, how, at)) for at in range(repeats) for world in worlds]
        for batch in range(BATCHES):
            gains = [
                run[batch]["accuracy"] - (run[batch - 1]["accuracy"] if batch else world.start) for world, run in runs
            ]
            count, gain = runs[0][1][batch]["judgments"], 100 * fmean(gains)
            cost = f"{BATCH / gain:.0f}" if gain > 0 else "none"
            told = [run[batch]["promised"] for _, run in runs if run[batch]["promised"]]
            promise = [f"{100 * fmean(one['gain'] for one in told):+.1f}"] if told else [""]
            promise += [f"{100 * fmean(one['gain_error'] for one in told):.1f}"] if told else [""]
            yield _line(how, f"{count - BATCH} to {count}", f"{gain:+.1f} ± {100 * error(gains):.1f}", cost, *promise)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing and print the tables; returns the exit code."""
    tables = ("errors", "choices", "promises")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=2, help="trainings of each arm a run (default %(default)s)")
    parser.add_argument("--table", dest="tables", nargs="+", choices=tables, default=tables)
    args = parser.parse_args(argv)
    prepare()
    with guarded(proceed=f"python {' '.join(sys.argv)}") as ending, ExitStack() as held:
        worlds = [World(run, args.out) for run in args.runs]
        for world in worlds:
            held.enter_context(locked(world.out, ["feedback"]))
        make: dict[str, Callable[[], Iterator[str]]] = {
            "errors": lambda: errors_table(worlds),
            "choices": lambda: choices_table(worlds, args.repeats),
            "promises": lambda: promises_table(worlds, args.repeats),
        }
        for name in args.tables:
            print(f"{name}\n\n" + "\n".join(make[name]()) + "\n", flush=True)
    return ending.code


if __name__ == "__main__":
    sys.exit(main())
