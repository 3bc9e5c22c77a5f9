"""What helps a reward model in the embedded world: one table a question, one column a seed.

    python examples/experiments/reward_modelling.py RUN [RUN …] [--table NAME …] [--out FILE]

Each RUN is the output folder of a finished `align quickstart`, one a seed. Every arm trains from the run's base or PMP
model and is kept in `RUN/experiments/reward/`: started again, the program goes on. All of them take about 20 minutes a
seed on one core. They are measured on the run's clean held-out pairs, which no annotator has blurred, and on 1000
held-out pairs of the crowd (another mix of questions, noisy votes).

"Annotated" pairs are clean ones as a person would grade them: 1 to 4 by the difference d of gold scores (up to 0.25,
0.5, 0.75, more), and the sides exchanged with probability sigmoid(-3.4 d): 30 % of the closest pairs, 3 % at d = 1.
Differences are paired, over the prompts of all seeds, with 95 % intervals clustered by prompt: they say how well the
arms are measured, the columns of the seeds how far training itself scatters.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from align.evaluation.compare import paired_difference
from align.recipe import Recipe, load_recipe
from align.recipe.fields import Source
from align.recipe.lineage import Origin
from align.recipe.sources import world_seed
from align.runs.launch import guarded, prepare
from align.runs.seeding import derive
from align.runtime.errors import MissingFileError
from align.runtime.lock import locked
from align.stages.common import read_rows
from align.stages.run_reward import train_reward
from align.stages.world import clean_comparisons
from align.tinyworld import phrasing, sets
from align.tinyworld.gold import judge
from align.tinyworld.world import World
from data_formats import write_jsonl
from data_formats.records import Comparison

FOLDER = "experiments/reward"
CUTS = (0.25, 0.5, 0.75)  # gold differences up to which a pair is of grade 1, 2, 3
STEEPNESS, CLEAN, CROWD = 3.4, 10_000, 1_000
PMP_SIZES = (100, 1_000, 10_000)


@dataclass(frozen=True, slots=True)
class Arm:
    """One training run: what it starts from, on which file, how many pairs of it, and what the section changes."""

    label: str
    name: str
    origin: str = "base"
    data: str = "clean"
    limit: int | None = 6_000
    changes: dict[str, Any] = field(default_factory=dict)


def tables() -> dict[str, list[Arm]]:
    """The arms of every table; an arm in two tables is one run."""
    kinds = ("end_token", "last_token", "mean", "max", "attention", "weighted_mean")
    plain = Arm("annotated, from PMP", "annotated", "pmp", "annotated")
    ranked = Arm("PMP, ranked", "pmp_ranked", data="crowd", limit=None)
    binarised = Arm("PMP, binarised", "pmp_binarised", data="crowd", limit=None, changes={"binarise": True})
    starts = {"without PMP": "base", "PMP ranked": ranked.name, "PMP binarised": binarised.name}
    pmp = [ranked, binarised]
    for size in PMP_SIZES:
        steps = {"max_steps": max(32, size // 32)}
        pmp += [
            Arm(f"{size} pairs, {label}", f"{origin}_{size}", origin, limit=size, changes=steps)
            for label, origin in starts.items()
        ]
    pmp.append(
        replace(pmp[-2], label="10000 pairs binarised, PMP ranked", name="binarised_10000", changes={"binarise": True})
    )
    half = {"max_steps": 94}
    return {
        "pooling": [Arm(kind, f"pooling_{kind}", changes={"pooling": kind}) for kind in kinds],
        "pmp": pmp,
        "margin": [
            replace(plain, label="no margin"),
            *(
                replace(plain, label=f"{m} margin", name=f"margin_{m}", changes={"margin": m})
                for m in ("small", "large")
            ),
        ],
        "lm": [
            Arm("LM term 0", "pooling_end_token", changes={"pooling": "end_token"}),
            Arm("LM term 0.1", "lm_01", changes={"lm_weight": 0.1}),
            Arm("1000 pairs, LM term 0", "base_1000", limit=1_000, changes={"max_steps": 32}),
            Arm("1000 pairs, LM term 0.1", "lm_01_1000", limit=1_000, changes={"max_steps": 32, "lm_weight": 0.1}),
        ],
        "epochs": [
            replace(plain, label="1 epoch"),
            replace(plain, label="4 epochs", name="epochs_4", changes={"num_train_epochs": 4.0}),
        ],
        "strength": [
            replace(
                plain, label="3000 pairs of any grade", name="any_grade", data="annotated", limit=3_000, changes=half
            ),
            replace(plain, label="3000 of grades 3 and 4", name="strong", data="strong", limit=3_000, changes=half),
            replace(
                plain, label="  with edited replies, same steps", name="edited", data="edited", limit=None, changes=half
            ),
            replace(plain, label="  with edited replies, one epoch", name="edited_whole", data="edited", limit=None),
        ],
    }


def grade(difference: float) -> int:
    """1 (negligibly better) to 4 (significantly better)."""
    return 1 + sum(difference > cut for cut in CUTS)


def write_data(recipe: Recipe, folder: Path) -> None:
    """The sets of all arms, as rows that any user's files could have."""
    world, sizes = World(world_seed(recipe)), recipe.tinyworld
    clean, _ = clean_comparisons(recipe, "comparisons", CLEAN)
    rng = random.Random(f"annotators-{recipe.seed}")
    annotated = [_annotated(pair, rng) for pair in clean]
    strong = [pair for pair in annotated if pair.grade >= 3][:3_000]
    crowd = sets.coarse_comparisons(world, sizes.coarse_comparisons + CROWD)
    files = {
        "clean": clean,
        "annotated": annotated,
        "strong": strong,
        "edited": [each for pair in strong for each in _with_edit(world, pair, rng)],
        "crowd": crowd[: sizes.coarse_comparisons],
        "crowd_heldout": [replace(pair, source="crowd") for pair in crowd[sizes.coarse_comparisons :]],
    }
    for name, pairs in files.items():
        write_jsonl(folder / f"{name}.jsonl", pairs)


def _annotated(pair: Comparison, rng: random.Random) -> Comparison:
    graded = replace(pair, grade=float(grade(pair.grade)))
    if rng.random() < 1 / (1 + math.exp(STEEPNESS * pair.grade)):
        return graded.swapped()
    return graded


def _with_edit(world: World, pair: Comparison, rng: random.Random) -> list[Comparison]:
    """The pair, and the two with the chosen reply made right and polite, where that improves it."""
    item = world.by_text[pair.prompt[-1].content].item
    edited = phrasing.reply(item, item.answer, "polite", rng)
    if judge(item, edited).score <= judge(item, pair.chosen).score:
        return [pair]
    return [pair, replace(pair, chosen=edited, rejected=pair.chosen), replace(pair, chosen=edited)]


def require_finished(run: Path) -> None:
    """Raises MissingFileError unless `run` holds a finished chain of the embedded world."""
    needed = (run / "rm" / "recipe.yaml", run / "summary.json", run / "world" / "heldout_comparisons.jsonl")
    if missing := [file for file in needed if not file.is_file()]:
        raise MissingFileError(f"{missing[0]} does not exist: run `align quickstart output_dir={run}` to its end first")


def train_all(run: Path, arms: Sequence[Arm]) -> None:
    """Train the arms that are not there yet, in order.

    Raises:
        MissingFileError: `run` holds no finished chain of the embedded world.
        FolderInUseError: another process is at work on its experiments.
    """
    require_finished(run)
    with locked(str(run), ["experiments"]):
        for arm in arms:
            if not (run / FOLDER / arm.name / "summary.json").is_file():
                train(run, arm)


def train(run: Path, arm: Arm) -> None:
    """Train one arm into its folder."""
    folder = run / FOLDER
    recipe = load_recipe(str(run / "rm" / "recipe.yaml"), [f"output_dir={run}"])
    data = folder / "data"
    if not (data / "crowd_heldout.jsonl").is_file():  # written last
        write_data(recipe, data)
    heldout = (run / "world" / "heldout_comparisons.jsonl", data / "crowd_heldout.jsonl")
    section = recipe.rm.model_copy(
        update={
            "data": (Source(path=str((data / f"{arm.data}.jsonl").resolve()), limit=arm.limit),),
            "eval_data": tuple(Source(path=str(path.resolve())) for path in heldout),
            "center_scores": False,
            **({"learning_rate": recipe.pmp.learning_rate, "warmup_steps": 40} if arm.data == "crowd" else {}),
            **arm.changes,
        }
    )
    stage = arm.origin in ("base", "pmp")
    origin = Origin("stage", arm.origin) if stage else Origin("path", str(folder / arm.origin / "model"))
    train_reward(recipe, section, origin, folder / arm.name, derive(recipe.seed, "rm"), stage="rm")


def read(folder: Path) -> dict[str, Any]:
    """The held-out pairs of an arm: `clean` and `crowd`, each a list of (prompt, strength, difference of scores)."""
    found: dict[str, Any] = {"clean": [], "crowd": []}
    for row in read_rows(folder / "eval.jsonl"):
        rest = (grade(row["grade"]), row["chosen_score"] - row["rejected_score"])
        found["crowd" if row["source"] == "crowd" else "clean"].append((row["prompt"][-1]["content"], *rest))
    return found


def accuracy(pairs: Sequence[tuple[str, int, float]], grades: Sequence[int] = (1, 2, 3, 4)) -> float:
    """Share of the pairs of these grades whose chosen reply scores higher."""
    right = [difference > 0 for _, strength, difference in pairs if strength in grades]
    return sum(right) / len(right)


def loss(pairs: Sequence[tuple[str, int, float]]) -> float:
    """Mean -log sigmoid of the differences, in nats."""
    return statistics.fmean(math.log1p(math.exp(-max(difference, -700))) for *_, difference in pairs)


def by_prompt(runs: Sequence[dict[str, Any]], which: str) -> list[list[float]]:
    """Right (1) or wrong (0), a list a prompt and seed."""
    groups: dict[tuple[int, str], list[float]] = {}
    for seed, found in enumerate(runs):
        for prompt, _, difference in found[which]:
            groups.setdefault((seed, prompt), []).append(float(difference > 0))
    return list(groups.values())


FIGURES: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
    ("grade 4", lambda found: accuracy(found["clean"], (4,))),
    ("grades 1 to 3", lambda found: accuracy(found["clean"], (1, 2, 3))),
    ("crowd", lambda found: accuracy(found["crowd"])),
)


def table(arms: Sequence[tuple[str, list[dict[str, Any]]]]) -> str:
    """A Markdown table: accuracy on the clean pairs by seed, its mean, means of the parts, loss, differences."""
    seeds = len(arms[0][1])
    head = [
        "",
        *(f"seed {at}" for at in range(seeds)),
        "mean",
        *(name for name, _ in FIGURES),
        "loss",
        "to the first row",
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for label, runs in arms:
        own = [accuracy(found["clean"]) for found in runs]
        cells = [f"{100 * value:.1f}" for value in (*own, statistics.fmean(own))]
        cells += [f"{100 * statistics.fmean(map(figure, runs)):.1f}" for _, figure in FIGURES]
        cells.append(f"{statistics.fmean(loss(found['clean']) for found in runs):.3f}")
        gain = paired_difference(by_prompt(arms[0][1], "clean"), by_prompt(runs, "clean"))
        low, high = 100 * gain["low"], 100 * gain["high"]
        cells.append("" if runs is arms[0][1] else f"{100 * gain['difference']:+.1f} [{low:+.1f}, {high:+.1f}]")
        lines.append([label, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_table(arms: Sequence[Arm], runs: Sequence[Path]) -> str:
    """`table` of arms that have been trained on every run."""
    return table([(arm.label, [read(run / FOLDER / arm.name) for run in runs]) for arm in arms])


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and print the tables; returns the exit code."""
    known = tables()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--table", dest="tables", nargs="+", choices=known, default=list(known))
    parser.add_argument("--out", type=Path, help="write the tables to this file")
    args = parser.parse_args(argv)
    prepare()

    with guarded(proceed=f"python {' '.join(sys.argv)}") as ending:
        for run in args.runs:
            require_finished(run)
        for run in args.runs:
            train_all(run, [arm for name in args.tables for arm in known[name]])
        texts = [f"{name}\n\n{read_table(known[name], args.runs)}\n" for name in args.tables]
        print("\n".join(texts), flush=True)
        if args.out:
            args.out.write_text("\n".join(texts), encoding="utf-8")
    return ending.code


if __name__ == "__main__":
    sys.exit(main())
