"""Going round on the embedded world: what fresh comparisons are worth to a reward model whose policy moves.

    python examples/experiments/rounds.py --seeds 0 1 2 --out FOLDER [--start RUN …] [--rounds 3] [--error 10]

An annotator who is played (`annotators.py`) sits in people's place. After the quickstart's base, sft and pmp three arms
go round, each round of PPO starting from the policy of the round before:

fresh    replies of the newest policy are judged, and the reward model is trained anew on all rounds' comparisons
first    as many comparisons, but of the first policy's replies in every round
none     nothing new is judged: the reward model of fresh's first round stays

--start names finished quickstarts of these seeds, whose base, sft and pmp are copied; else they are trained. What is
there is not made again: started again, the program goes on. The accuracy is that of the reward model which the round's
policy trains on, by the gold score, on pairs of the policy's own replies at temperature 1 to held-out prompts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from align.recipe import Recipe, load_recipe
from align.recipe.rounds import round_dir, start_recipe
from align.runs.launch import guarded, prepare
from align.runtime.files import atomic_dir
from align.runtime.json_files import read_object
from examples.experiments.annotators import Annotator, write_judge

ARMS = ("fresh", "first", "none")
ONCE = ("base", "sft", "pmp", "world")
SIZES = [
    "rm.data=[{path: tinyworld:comparisons, limit: 1000}]",
    "ppo.num_iterations=60",
    "ppo.critic_warmup_steps=20",
]
COLLECT = {"data": ["tinyworld:prompts"], "num_prompts": 300, "max_prompt_length": 64, "max_completion_length": 40}
TEMPERATURES = (1.0, 1.3)
COLUMNS = {
    "comparisons": "comparisons so far",
    "heldout": "accuracy, held-out pairs",
    "before": "own replies, before PPO",
    "after": "own replies, after PPO",
    "gold_sampled": "gold, T = 1",
    "gold": "gold, greedy",
    "correct": "correct, greedy",
    "kl": "KL from the round before",
}
SHARES = ("heldout", "before", "after", "correct")


def main(argv: Sequence[str] | None = None) -> int:
    """Run every arm of every seed, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", metavar="SEED", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("runs/rounds"))
    parser.add_argument("--start", metavar="RUN", nargs="+", type=Path, default=[], help="one a seed, in their order")
    parser.add_argument("--rounds", metavar="N", type=int, default=3)
    parser.add_argument("--error", metavar="PERCENT", type=float, default=10.0, help="how often the annotator is wrong")
    parser.add_argument("--arms", metavar="ARM", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", default=[], help="other keys of the quickstart")
    args = parser.parse_args(argv)
    if args.start and len(args.start) != len(args.seeds):
        parser.error("--start names one run for each of --seeds")
    prepare()
    with guarded(proceed=f"python {' '.join(sys.argv)}") as ending:
        starts: Sequence[Path | None] = args.start or [None] * len(args.seeds)
        for seed, start in zip(args.seeds, starts, strict=True):
            run_seed(args, seed, start)
        print(table(args, [figures(args, seed) for seed in args.seeds]))
    return ending.code


def recipe_of(args: argparse.Namespace, seed: int, arm: str) -> Recipe:
    """The quickstart as an arm goes round with it."""
    folder = args.out / f"seed-{seed}"
    who = Annotator("ann", error=args.error / 100, seed=seed)
    judge = {"kind": "comparison", "function": write_judge(folder / "people.py", who, seed)}
    model = "newest" if arm == "fresh" else "sft"
    collect = COLLECT | {"sources": [{"model": model, "temperature": one} for one in TEMPERATURES]}
    rounds = {"num_rounds": args.rounds, "judge": judge, "eval_data": ["tinyworld:eval_prompts"]}
    own = [f"seed={seed}", f"output_dir={folder / arm}", *SIZES, *args.set]
    if arm == "none":
        collect["num_prompts"] = 10  # a round has comparisons, of which this arm makes no use
        reward = round_dir(recipe_of(args, seed, "fresh"), 1) / "rm" / "model"
        learns = ["rm.max_steps=1", "rm.warmup_steps=0"]  # which rounds want somebody to do; nothing reads it here
        own += [*learns, f"ppo.reward_from={reward}"]
    return load_recipe("quickstart", [*own, f"collect={json.dumps(collect)}", f"rounds={json.dumps(rounds)}"])


def run_seed(args: argparse.Namespace, seed: int, start: Path | None) -> None:
    """Every arm, as far as it is not done."""
    from align.feedback.rounds import run_rounds
    from align.stages.chain import prepare_data, run_chain

    if start is None:
        whole = recipe_of(args, seed, "fresh")
        start = args.out / f"seed-{seed}" / "start"
        run_chain(start_recipe(whole).model_copy(update={"output_dir": str(start)}))
        prepare_data(whole.model_copy(update={"output_dir": str(start)}), "rm")
    for arm in args.arms:
        recipe = recipe_of(args, seed, arm)
        for name in ONCE:
            if not (Path(recipe.output_dir) / name).exists():
                with atomic_dir(Path(recipe.output_dir) / name) as draft:
                    shutil.copytree(start / name, draft, dirs_exist_ok=True)
        run_rounds(recipe)


def figures(args: argparse.Namespace, seed: int) -> dict[tuple[str, int], dict[str, float]]:
    """What every round of every arm came to."""
    found = {}
    for arm in args.arms:
        recipe = recipe_of(args, seed, arm)
        for number in range(1, args.rounds + 1):
            folder = round_dir(recipe, number)
            ppo = _summary(folder / "ppo")
            own = ppo.get("reward_on_own", {})  # none where no reply is better than another
            row = {name: (own.get(name) or {}).get("accuracy") for name in ("before", "after", "heldout")}
            row |= {name: ppo[name] for name in ("gold_sampled", "gold", "correct", "kl")}
            rm = folder / "rm" if arm != "none" else round_dir(recipe_of(args, seed, "fresh"), 1) / "rm"
            row["comparisons"] = _summary(rm)["rows"]
            found[arm, number] = row
    return found


def _summary(folder: Path) -> dict[str, Any]:
    return read_object(folder / "summary.json", "run the program again") or {}


def table(args: argparse.Namespace, seeds: Sequence[dict[tuple[str, int], dict[str, float]]]) -> str:
    """A Markdown table, a row an arm and round: the mean over seeds, and each seed's."""
    lines = [["arm", "round", *COLUMNS.values()], ["---"] * (len(COLUMNS) + 2)]
    for arm in args.arms:
        for number in range(1, args.rounds + 1):
            rows = [one[arm, number] for one in seeds]
            lines.append([arm, str(number), *(_cell(name, [row[name] for row in rows]) for name in COLUMNS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(name: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    scale, digits = (100, 1) if name in SHARES else (1, 0 if name == "comparisons" else 2)
    shown = [f"{scale * value:.{digits}f}" for value in (fmean(known), *known)]
    return shown[0] + (f" ({', '.join(shown[1:])})" if len(known) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
