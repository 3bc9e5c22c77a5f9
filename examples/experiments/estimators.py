"""What each advantage estimator makes of the quickstart's PPO stage: one start, reward and prompts, and the same seeds.

    python examples/experiments/estimators.py RUN [RUN …] [--out FOLDER] [--only NAME …]

Each RUN is the folder of a quickstart, one a seed, of which the stages up to rm are finished; nothing is written to it.
The estimators without a critic leave the recipe's keys of one out and train from the first optimizer step; all else is
the recipe's. What is finished in FOLDER is not run again, what was begun goes on: started again, the program goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from align.recipe import Recipe, load_recipe
from align.recipe.estimators import ESTIMATORS
from align.recipe.lineage import init_origin
from align.recipe.ppo_section import OF_THE_CRITIC, PPOSection
from align.runs.launch import guarded, prepare
from align.runtime.files import write_json

COLUMNS = {
    "gold": "gold, greedy",
    "gold_sampled": "gold, T = 1",
    "correct": "correct, greedy",
    "correct_sampled": "correct, T = 1",
    "kl": "KL, nats a reply",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
}


def main(argv: list[str] | None = None) -> int:
    """Run every estimator on every run, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("runs/estimators"))
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=tuple(ESTIMATORS), default=tuple(ESTIMATORS))
    args = parser.parse_args(argv)
    prepare()

    with guarded(proceed=f"python {' '.join(sys.argv)}") as ending:
        recipes = [load_recipe(run / "rm" / "recipe.yaml", [f"output_dir={run}"]) for run in args.runs]
        print(table({name: [outcome_of(recipe, name, args.out) for recipe in recipes] for name in args.only}))
    return ending.code


def section_with(ppo: PPOSection, name: str) -> PPOSection:
    """The recipe's section with another estimator, whose defaults take the place of gae's."""
    left_out = {"whiten_advantages"} if name != ppo.advantage else set()
    left_out |= set() if ESTIMATORS[name].critic else {"critic", "critic_from", *OF_THE_CRITIC}
    data = ppo.model_dump(mode="json", exclude=left_out)
    return PPOSection.model_validate_json(json.dumps(data | {"advantage": name}))


def outcome_of(recipe: Recipe, name: str, out: Path) -> dict[str, Any]:
    """The figures of one estimator on one run; made where they are not there yet."""
    from align.stages import common
    from align.stages.policy_evaluation import compare_policies, eval_prompts
    from align.stages.run_ppo import run_ppo

    folder = out / f"seed{recipe.seed}" / name
    if not (folder / "outcome.json").is_file():
        recipe = recipe.model_copy(update={"ppo": section_with(recipe.ppo, name)})
        began = time.process_time()
        found = run_ppo(recipe, out_dir=folder)
        found |= {"cpu_seconds": time.process_time() - began, "seed": recipe.seed}
        start = common.origin_path(recipe, init_origin(recipe, "ppo"), stage="ppo")
        found |= compare_policies(recipe, folder, start, eval_prompts(recipe))
        write_json(folder / "outcome.json", found)
    return json.loads((folder / "outcome.json").read_text(encoding="utf-8"))


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A line an estimator; means over the seeds, with the least and the most in brackets."""
    lines = [f"| advantage | {' | '.join(COLUMNS.values())} |", "|---|" + "---:|" * len(COLUMNS)]
    for name, outcomes in found.items():
        cells = (spread([one[key] for one in outcomes], 0 if "seconds" in key else 2) for key in COLUMNS)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    """The mean, and in brackets the least and the most where there are several."""
    ends = f" [{min(values):.{digits}f}, {max(values):.{digits}f}]" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{ends}"


if __name__ == "__main__":
    sys.exit(main())
