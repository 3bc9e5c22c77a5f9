"""Half of the data chosen, against all of it and a random half: SFT in the embedded world, a reward on real pairs.

    python examples/experiments/selection.py RUN [RUN …] [--steps N] [--arms ARM …] [--out FILE]
    python examples/experiments/selection.py --real FILE [FILE …]

Each RUN is the output folder of a finished `align quickstart`, one a seed. Its demonstrations are of mixed quality as
they are (whoever wrote them believes popular mistakes): the pool `as they are`. In the pool `planted` a quarter of the
rows are repeated, another quarter have the reply to another question of their kind, and the rest is untouched. Of each
pool SFT trains from the run's base model on all rows, on the half that `selection` chooses (quality: the run's reward
model; difficulty: loss ratio under the run's base model), on the half that is chosen for diversity alone, and on a
random half; at the same number of optimizer steps, and the halves at the same number of epochs too, with half the
steps (`chosen/2` …). All arms are judged by the gold score on the run's held-out prompts and by the loss on the run's
held-out demonstrations, whose prompts are in no pool. Arms are kept in `RUN/experiments/selection/`: started again, it
goes on.

With --real a linear Bradley-Terry model over hashed words (a second of training) takes the reward model's place: it is
fitted on all training pairs, on halves of them, and judged on a fifth of the pairs held out by prompt. Quality is the
margin that a model fitted on the other half of the training pairs gives a pair. Ten halves are drawn at random.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from align.curation.choosing import choose
from align.curation.clusters import kmeans
from align.curation.outcome import choose_records
from align.curation.scale import quantiles
from align.curation.selection import text_of
from align.data.load import train_and_heldout
from align.evaluation.shares import clustered_wilson
from align.recipe import Recipe, load_recipe
from align.recipe.fields import Source
from align.recipe.lineage import model_dir
from align.recipe.selection_section import SelectionSection
from align.runs.launch import guarded, prepare
from align.runtime.errors import MissingFileError
from align.runtime.files import write_json
from align.runtime.json_files import read_object
from align.runtime.lock import locked
from align.stages import policy_evaluation
from align.stages.run_sft import run_sft
from align.textmodels.embeddings import HashedTfidf
from data_formats import stream, write_jsonl
from data_formats.records import Comparison, Demonstration
from data_formats.splitting import prompt_key, split_heldout

FOLDER, POOLS = "experiments/selection", ("as they are", "planted")
REPEATED, MISLABELLED = 0.25, 0.25  # shares of the planted pool
ARMS = ("all", "chosen", "chosen/2", "diverse", "diverse/2", "random", "random/2")
ALMOST = 0.999  # cosine from which on two rows of the world are one: its prompts are of few patterns
DRAWS, HELDOUT = 10, 0.2
COLUMNS = ("gold", "correct", "gold_sampled", "correct_sampled", "heldout_loss")


def recipe_of(run: Path) -> Recipe:
    """The recipe of a finished quickstart, writing to `run`."""
    if not (run / "rm" / "summary.json").is_file():
        raise MissingFileError(f"{run} holds no finished rm stage: name the folder of an `align quickstart`")
    return load_recipe(run / "rm" / "recipe.yaml", [f"output_dir={run}"])


def planted(records: list[Demonstration], seed: int) -> tuple[list[Demonstration], dict[int, str]]:
    """As many rows, of which some are repeated and some have another's reply; what was done to which row."""
    rng, count = random.Random(f"planted/{seed}"), len(records)
    order = rng.sample(range(count), count)
    repeated, wrong = round(REPEATED * count), round(MISLABELLED * count)
    plain, mislabelled = order[repeated + wrong :], order[repeated : repeated + wrong]
    by_category: dict[str, list[int]] = defaultdict(list)
    for at in plain:
        by_category[records[at].category].append(at)
    found, done = [records[at] for at in plain], {}
    for at in mislabelled:
        other = records[rng.choice(by_category[records[at].category] or plain)]
        done[len(found)] = "mislabelled"
        found.append(replace(records[at], messages=(*records[at].messages[:-1], other.messages[-1])))
    for at in rng.choices(plain, k=repeated):
        done[len(found)] = "repeated"
        found.append(records[at])
    return found, done


def write_pools(recipe: Recipe, run: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Write the held-out rows, both pools and the halves of each; the counts of each half, by pool and way."""
    records, heldout, _ = train_and_heldout(recipe.sft, Demonstration, recipe)
    write_jsonl(out / "heldout.jsonl", heldout)
    plain, done = planted(records, recipe.seed)
    rated = {
        "quality": {"kind": "reward", "model_from": str(model_dir(recipe, "rm")), "batch_size": 64},
        "difficulty": {"kind": "ifd", "model_from": str(model_dir(recipe, "base"))},
    }
    counts: dict[str, dict[str, Any]] = {}
    for pool, rows, made in (("as they are", records, {}), ("planted", plain, done)):
        folder = out / pool.replace(" ", "_")
        write_jsonl(folder / "all.jsonl", rows)
        counts[pool] = {}
        for way, keys in (("chosen", rated), ("diverse", {}), ("random", {"random": True})):
            told = {"keep": 0.5, "max_cosine": ALMOST, "seed": recipe.seed, **keys}
            kept, _ = choose_records(rows, SelectionSection.model_validate(told), folder / f"{way}.selection")
            write_jsonl(folder / f"{way}.jsonl", (rows[at] for at in kept))
            of_kind = [made.get(at, "untouched") for at in kept]
            counts[pool][way] = {kind: of_kind.count(kind) for kind in ("untouched", "repeated", "mislabelled")}
    return counts


def trained(recipe: Recipe, out: Path, pool: str, way: str, steps: int) -> dict[str, Any]:
    """The figures of one arm, made where they are not there yet."""
    place = out / pool.replace(" ", "_")
    folder = place / f"{way}-{steps}"
    file = folder / "outcome.json"
    if not file.is_file():
        data, heldout = ((Source(path=str(path.resolve()), format="messages"),) for path in
                         (place / f"{way}.jsonl", out / "heldout.jsonl"))  # fmt: skip
        changes = {"data": data, "eval_data": heldout, "max_steps": steps, "eval_num_replies": 0, "eval_steps": None}
        changes["warmup_steps"] = min(recipe.sft.warmup_steps, steps // 5)
        summary = run_sft(recipe, section=recipe.sft.model_copy(update=changes), out_dir=folder)
        prompts, rewards = policy_evaluation.eval_prompts(recipe), policy_evaluation.gold_rewards(recipe)
        judged = policy_evaluation.judge_model(recipe, folder / "model", prompts, rewards)
        figures = policy_evaluation.figures(judged, "gold")
        figures |= {"heldout_loss": summary["heldout_loss"], "rows": summary["rows"], "epochs": summary["epochs"]}
        write_json(file, figures)
    return read_object(file, "remove it to have the arm made again") or {}


def run_arms(run: Path, steps: int | None, arms: list[str]) -> dict[str, Any]:
    """These arms on one run."""
    recipe, out = recipe_of(run), run / FOLDER
    steps = steps or recipe.sft.max_steps
    found: dict[str, Any] = {"seed": recipe.seed, "steps": steps, "arms": {}}
    with locked(recipe.output_dir, ["experiments"]):
        found["kept"] = write_pools(recipe, run, out)
        for pool in POOLS:
            for arm in arms:
                way, _, shorter = arm.partition("/")
                length = steps // 2 if shorter else steps
                name = f"{pool} | {'all' if way == 'all' else f'half, {way}'} | {length}"
                found["arms"][name] = trained(recipe, out, pool, way, length)
    return found


def spread(values: list[float]) -> str:
    """The mean, and in brackets the least and the most where there are several."""
    ends = f" [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{ends}"


def print_tables(found: list[dict[str, Any]]) -> None:
    """A line an arm, means over the runs; then what the halves of the planted pool hold."""
    print(f"| pool | rows | steps | {' | '.join(COLUMNS)} |\n|---|---|---:|" + "---:|" * len(COLUMNS))
    for arm in found[0]["arms"]:
        print(f"| {arm} | {' | '.join(spread([run['arms'][arm][key] for run in found]) for key in COLUMNS)} |")
    print("\n| half of the planted pool | untouched | repeated | mislabelled |\n|---|---:|---:|---:|")
    for way in ("chosen", "diverse", "random"):
        kinds = ("untouched", "repeated", "mislabelled")
        cells = [spread([float(run["kept"]["planted"][way][kind]) for run in found]) for kind in kinds]
        print(f"| {way} | {' | '.join(cells)} |")


def real_pairs(file: str) -> None:
    """A row a way of choosing: share of held-out pairs that a linear model trained on it orders rightly."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    pairs = list(stream(Path(file), Comparison))
    train, heldout = split_heldout(pairs, HELDOUT)
    hashed = HashingVectorizer(ngram_range=(1, 2), n_features=2**16, alternate_sign=False)

    def differences(records: list[Comparison]) -> Any:
        better, worse = (hashed.transform([getattr(one, side) for one in records]) for side in ("chosen", "rejected"))
        return better - worse

    x_train, x_heldout, count = differences(train), differences(heldout), len(train)

    def fitted(at: np.ndarray) -> Any:
        signs = np.where(np.arange(len(at)) % 2, 1, -1)  # a pair and its mirror say the same
        rows = x_train[at].multiply(signs[:, None]).tocsr()
        return LogisticRegression(C=10.0, fit_intercept=False, max_iter=500).fit(rows, signs)

    def right(at: np.ndarray) -> np.ndarray:
        return (fitted(at).decision_function(x_heldout) > 0).astype(float)

    texts = [text_of(one, "record") for one in train]
    vectors = HashedTfidf(texts).embed(texts)
    clusters = kmeans(vectors, max(1, round(count**0.5)), 0)
    folds = [np.array([at for at in range(count) if (at % 2) == side]) for side in (0, 1)]
    margins = np.empty(count)
    for side in (0, 1):
        margins[folds[side]] = fitted(folds[1 - side]).decision_function(x_train[folds[side]])
    options = {"max_cosine": 0.95, "budget": count // 2}
    by_margin = choose(vectors, clusters, np.array(quantiles(margins.tolist())), **options)
    size = int(by_margin.kept_N.sum())  # fewer than half, where more are duplicates
    diverse = choose(vectors, clusters, None, **options | {"budget": size})
    draws = [np.random.default_rng(seed).permutation(count)[:size] for seed in range(DRAWS)]
    rows = {"all": [np.arange(count)], "half, by quality": [np.flatnonzero(by_margin.kept_N)]}
    rows |= {"half, diverse": [np.flatnonzero(diverse.kept_N)], f"half, random ({DRAWS} draws)": draws}
    asked = [prompt_key(one) for one in heldout]
    for way, sets in rows.items():
        found = np.mean([right(at) for at in sets], axis=0)
        low, high = clustered_wilson(found.tolist(), asked)
        size = len(sets[0])
        print(
            f"| {Path(file).name} | {way} | {size} | {100 * found.mean():.1f} % [{100 * low:.1f}, {100 * high:.1f}] |"
        )


def main(argv: list[str] | None = None) -> int:
    """Run what is asked for and print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="*", type=Path)
    parser.add_argument("--real", metavar="FILE", nargs="+", default=[], help="comparisons")
    parser.add_argument("--steps", type=int, help="of all rows (default: the sft stage's)")
    parser.add_argument("--arms", metavar="ARM", nargs="+", choices=ARMS, default=ARMS, help=f"of {', '.join(ARMS)}")
    parser.add_argument("--out", type=Path, help="write all figures of the runs to this JSON file")
    args = parser.parse_args(argv)
    prepare()
    with guarded(proceed=f"python {' '.join(sys.argv)}") as ending:
        if found := [run_arms(run, args.steps, args.arms) for run in args.runs]:
            print_tables(found)
        if found and args.out is not None:
            write_json(args.out, found)
        if args.real:
            print(f"| pairs | trained on | pairs of it | held-out accuracy, {100 * HELDOUT:.0f} % of the prompts |")
            print("|---|---|---:|---:|")
        for file in args.real:
            real_pairs(file)
    return ending.code


if __name__ == "__main__":
    sys.exit(main())
