"""What stands beside the reward model of the embedded world: one without PMP, and the judge who knows no facts.

Called when the rm stage is done. The control trains on the same pairs for the same steps with the recipe's learning
rate, from the model that PMP started from; `examples/experiments/controls.py` gives both their best of three.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.evaluation.compare import paired_difference
from align.evaluation.table import percent
from align.recipe import Recipe
from align.recipe.lineage import init_origin, stage_dir
from align.recipe.sources import world_seed
from align.runs.seeding import derive
from align.stages.common import Summary, read_rows
from align.stages.run_reward import train_reward

WITHOUT_PMP = "rm_without_pmp"


def without_pmp(recipe: Recipe, stage: str, summary: Summary) -> Summary:
    """Accuracy of the reward model that skipped PMP, and the paired difference; only where a recipe has both stages."""
    if recipe.pmp is None or recipe.tinyworld is None or "accuracy" not in summary:
        return {}
    out_dir = stage_dir(recipe, WITHOUT_PMP)
    control = train_reward(
        recipe, recipe.rm, init_origin(recipe, "pmp"), out_dir, derive(recipe.seed, "rm"), stage="rm"
    )
    difference = paired_difference(right(out_dir), right(stage_dir(recipe, "rm")))
    rows = [("  finetuned without PMP", None, percent(control["accuracy"]))]
    return {
        "accuracy_without_pmp": control["accuracy"],
        "accuracy_correctness_without_pmp": control.get("accuracy_correctness"),
        "gain_by_pmp": difference,
        "headline": rows,
    }


def by_manners(recipe: Recipe, stage: str, summary: Summary) -> Summary:
    """Accuracy of the gold score without correctness on the held-out pairs, ties counted half."""
    if recipe.tinyworld is None or "accuracy" not in summary:
        return {}
    from align.tinyworld.gold import Manners
    from align.tinyworld.world import World

    judge = Manners(World(world_seed(recipe)))
    hits = []
    for line in lines(stage_dir(recipe, "rm")):
        question = line["prompt"][-1]["content"]
        better, worse = (judge.value(judge.judge(question, line[side])) for side in ("chosen", "rejected"))
        hits.append(0.5 if better == worse else float(better > worse))
    baseline = sum(hits) / len(hits)
    return {"manners_baseline": baseline, "headline": [("  by manners alone", None, percent(baseline))]}


def lines(folder: Path) -> list[dict[str, Any]]:
    """The rows of a reward stage's `eval.jsonl`."""
    return read_rows(folder / "eval.jsonl")


def right(folder: Path) -> list[list[float]]:
    """1.0 or 0.0 for each held-out pair, those of one prompt together, as `paired_difference` takes them."""
    by_prompt: dict[str, list[float]] = {}
    for line in lines(folder):
        verdict = float(line["chosen_score"] > line["rejected_score"])
        by_prompt.setdefault(line["prompt"][-1]["content"], []).append(verdict)
    return list(by_prompt.values())
