"""What rejection sampling gives: K of 2, 4, 10 and 30, three rounds with and without the earlier bests, and with PPO.

    python examples/rejection_experiments.py RUN [RUN …] [--out FILE] [--prompts N] [--steps N] [--ppo-iterations N]

Each RUN is the output folder of a finished `align quickstart`, one a seed. The arms (`align.stages.rejection_arms`) are
kept in `RUN/experiments/rejection/`: started again, the program goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from align.runs.launch import guarded, prepare
from align.runtime import files

NAMES = {
    "sft": "SFT",
    "rounds": "RS, {rounds} rounds of K = {count}, best of all rounds",
    "rounds_newest_only": "RS, {rounds} rounds of K = {count}, newest only",
    "ppo": "PPO alone",
    "rounds_then_ppo": "RS with all rounds, then PPO",
}
COLUMNS = ("gold", "correct", "reward", "gold_sampled", "correct_sampled", "distinct_sampled")


def main(argv: list[str] | None = None) -> int:
    """Run every arm on every run, print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--ppo-iterations", type=int, default=None)
    args = parser.parse_args(argv)
    prepare()

    with guarded(proceed=f"python {' '.join(sys.argv)}") as ending:
        from align.stages import rejection_arms

        settings = rejection_arms.Settings(args.prompts, steps=args.steps, ppo_iterations=args.ppo_iterations)
        found = [rejection_arms.run(run, settings) for run in args.runs]
        print_tables(found, settings)
        if args.out is not None:
            files.write_json(args.out, found)
    return ending.code


def spread(values: list[float]) -> str:
    """The mean, and in brackets the least and the most where there are several."""
    ends = f" [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{ends}"


def print_tables(found: list[dict[str, Any]], settings: Any) -> None:
    """A line an arm, and the best of k by k; means over the runs."""
    print("| arm | gold | correct | reward | gold, T = 1 | correct, T = 1 | distinct, T = 1 |\n|---|" + "---:|" * 6)
    for arm in found[0]["arms"]:
        label = NAMES.get(arm, f"RS, one round, K = {arm[1:]}").format(rounds=settings.rounds, count=settings.count)
        cells = [spread([run["arms"][arm][key] for run in found]) for key in COLUMNS]
        print(f"| {label} | {' | '.join(cells)} |")
    print("\n| k | reward of the best of k | median | gap |\n|---:|---:|---:|---:|")
    for rows in zip(*(run["by_k"] for run in found), strict=True):
        cells = [spread([row[key] for row in rows]) for key in ("best", "median", "gap")]
        print(f"| {rows[0]['k']} | {' | '.join(cells)} |")
    print(json.dumps({"seeds": [run["seed"] for run in found]}))


if __name__ == "__main__":
    sys.exit(main())
