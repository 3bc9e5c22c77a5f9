"""The controls beside the quickstart: what each part of the chain is worth.

    make controls [SEED=n]       (or: python examples/experiments/controls.py RECIPE [key=value …])

Runs on a finished chain and writes to `<output_dir>/controls/`; controls that are there already are not run again.

- PMP or not: both finetuned on the same pairs for the same steps, at three learning rates each. The best rate of each
  is chosen on every other held-out prompt, the two are compared on the pairs of the rest.
- SFT on good demonstrations only: as many, all true and polite.
- Best of the sampled replies by the reward model (best-of-8 with the default `evaluation.num_samples`).
- PPO on a reward model trained on the same pairs with shuffled labels, without PMP: nothing is to be gained.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.evaluation import compare
from align.evaluation.compare import paired_difference
from align.recipe import Recipe, RecipeError, load_recipe
from align.recipe.lineage import Origin, init_origin, stage_dir
from align.recipe.sources import world_seed
from align.runs.arguments import add_overrides
from align.runs.launch import guarded, prepare
from align.runs.seeding import derive
from align.runtime import files
from align.runtime.errors import MissingFileError
from align.runtime.lock import locked
from align.runtime.terminal import Parser
from align.stages import policy_evaluation, reward_controls
from align.stages.common import Summary, origin_path, read_rows, read_summary
from align.stages.recipe_guard import RecipeChangedError, changes, is_begun, require_same_world, some
from align.stages.run_ppo import run_ppo
from align.stages.run_reward import train_reward
from align.stages.run_sft import run_sft

RATES = (0.3, 1.0, 3.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run every control of the recipe named on the command line and print the table; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    description = "The controls beside a chain, of the same overrides."
    parser = Parser(prog="python examples/experiments/controls.py", description=description)
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe of a finished chain of the embedded world")
    add_overrides(parser)
    args = parser.parse_args(argv)
    prepare()

    with guarded(proceed=shlex.join(["python", "examples/experiments/controls.py", *argv])) as ending:
        recipe = load_recipe(args.recipe, args.overrides)
        require_finished(recipe)
        with locked(recipe.output_dir, ["controls"]):
            print_table(recipe, run_controls(recipe))
    return ending.code


def require_finished(recipe: Recipe) -> None:
    """Raises an AlignError unless the chain is one of the embedded world, finished, and of this very recipe."""
    if recipe.tinyworld is None or recipe.rm is None or recipe.ppo is None:
        raise RecipeError(["tinyworld: the controls need the gold score of the embedded world"], recipe.name)
    if not (Path(recipe.output_dir) / "summary.json").is_file():
        raise MissingFileError(
            f"{recipe.output_dir} holds no finished chain: run `align run RECIPE` with this recipe first"
        )
    require_unchanged(recipe, recipe.stages)
    require_same_world(recipe)


def require_unchanged(recipe: Recipe, stages: tuple[str, ...]) -> None:
    """Raises RecipeChangedError when a stage was finished, or begun, with another recipe."""
    begun = [stage for stage in stages if is_begun(recipe, stage)]
    problems = [str(one) for stage in begun for one in changes(recipe, stage, stage_dir(recipe, stage))]
    if problems:
        raise RecipeChangedError(
            f"{recipe.output_dir} holds stages made with another recipe ({some(problems)}): "
            "give --fresh to start them anew, or choose another output_dir"
        )


def run_controls(recipe: Recipe) -> Summary:
    """Every control; also in `<output_dir>/controls/summary.json`."""
    folder = Path(recipe.output_dir) / "controls"
    prompts = policy_evaluation.eval_prompts(recipe)
    found: Summary = {
        "seed": recipe.seed,
        "pmp": pmp_or_not(recipe, folder),
        "good_demonstrations": good_demonstrations(recipe, folder, prompts),
        "best_of_n": best_of_n(recipe),
        "shuffled_labels": shuffled_labels(recipe, folder, prompts),
    }
    files.write_json(folder / "summary.json", found)
    return found


def pmp_or_not(recipe: Recipe, folder: Path) -> Summary:
    """Both at three learning rates; accuracies and the paired difference of the best."""
    origins = {"with_pmp": Origin("stage", "pmp"), "without_pmp": init_origin(recipe, "pmp")}
    there = {"with_pmp": stage_dir(recipe, "rm"), "without_pmp": stage_dir(recipe, reward_controls.WITHOUT_PMP)}
    accuracies: dict[str, dict[str, float]] = {}
    best: dict[str, list[list[float]]] = {}
    for name, origin in origins.items():
        chosen: dict[str, list[list[float]]] = {}
        for factor in RATES:
            rate = factor * recipe.rm.learning_rate
            section = recipe.rm.model_copy(update={"learning_rate": rate})
            # the chain itself trained both at the recipe's own rate, with this seed
            out_dir = there[name] if factor == 1.0 else folder / f"rm_{name}_{rate:g}"
            if not (out_dir / "summary.json").is_file():
                train_reward(recipe, section, origin, out_dir, derive(recipe.seed, "rm"), stage="rm")
            chosen[f"{rate:g}"] = reward_controls.right(out_dir)
        accuracies[name] = {rate: compare.mean(right) for rate, right in chosen.items()}
        best[name] = max(chosen.values(), key=lambda right: compare.mean(right[::2]))
    with_pmp, without = best["with_pmp"][1::2], best["without_pmp"][1::2]
    return {
        "accuracy": accuracies,
        "pairs_compared": sum(map(len, without)),
        "best_with_pmp": compare.mean(with_pmp),
        "best_without_pmp": compare.mean(without),
        "gain": paired_difference(without, with_pmp),
    }


def good_demonstrations(recipe: Recipe, folder: Path, prompts: list[Any]) -> Summary:
    """Gold score of an SFT model that saw only good demonstrations."""
    from align.recipe.fields import Source
    from align.tinyworld import sets
    from align.tinyworld.world import World
    from data_formats import write_jsonl

    out_dir, file = folder / "sft_good", folder / "good_demonstrations.jsonl"
    if not (out_dir / "summary.json").is_file():
        demos = sets.demonstrations(World(world_seed(recipe)), recipe.tinyworld.demonstrations, good=True)
        write_jsonl(file, demos)
        section = recipe.sft.model_copy(update={"data": (Source(path=str(file.resolve())),)})
        run_sft(recipe.model_copy(update={"sft": section}), out_dir=out_dir)
    judged = policy_evaluation.judge_model(recipe, out_dir / "model", prompts, policy_evaluation.gold_rewards(recipe))
    return policy_evaluation.figures(judged, "gold")


def best_of_n(recipe: Recipe) -> Summary:
    """Gold score of the SFT reply that the reward model likes best of those sampled for the evaluation."""
    rows = [line["sampled"]["sft"] for line in read_rows(stage_dir(recipe, "ppo") / "eval.jsonl")]
    chosen = [max(replies, key=lambda reply: reply["reward"]) for replies in rows]
    return {
        "n": len(rows[0]),
        "gold": sum(reply["gold"] for reply in chosen) / len(chosen),
        "correct": sum(reply["correct"] for reply in chosen) / len(chosen),
    }


def shuffled_labels(recipe: Recipe, folder: Path, prompts: list[Any]) -> Summary:
    """What PPO gains on a reward model that learnt nothing."""
    reward_dir, out_dir = folder / "rm_shuffled", folder / "ppo_shuffled"
    if not (reward_dir / "summary.json").is_file():
        origin = init_origin(recipe, "pmp" if recipe.pmp is not None else "rm")
        seed = derive(recipe.seed, "rm")
        train_reward(recipe, recipe.rm, origin, reward_dir, seed, stage="rm", shuffle_labels=True)
    accuracy = read_summary(reward_dir)["accuracy"]
    section = recipe.ppo.model_copy(update={"reward": (), "reward_from": str(reward_dir / "model")})
    changed = recipe.model_copy(update={"ppo": section})
    if not (out_dir / "summary.json").is_file():
        run_ppo(changed, out_dir=out_dir)
    origin = source_of_policy(recipe)
    return {"reward_accuracy": accuracy, **policy_evaluation.compare_policies(changed, out_dir, origin, prompts)}


def source_of_policy(recipe: Recipe) -> str:
    """Folder or hub id of the policy before PPO."""
    return origin_path(recipe, init_origin(recipe, "ppo"), stage="ppo")


def print_table(recipe: Recipe, found: Summary) -> None:
    """The controls beside the chain's own figures."""
    from rich.table import Table

    from align.runtime.console import Console

    chain = read_summary(Path(recipe.output_dir))
    table = Table(title=f"controls of {recipe.name}, seed {recipe.seed}")
    for name in ("policy", "gold, greedy", "correct, greedy", "gold, temperature 1", "correct, temperature 1"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    best, good = found["best_of_n"], found["good_demonstrations"]
    rows = {
        "SFT": chain["sft"],
        "SFT on good demonstrations only": good,
        f"best of {best['n']} SFT replies": {"gold_sampled": best["gold"], "correct_sampled": best["correct"]},
        "PPO": chain["ppo"],
        "PPO on shuffled labels": found["shuffled_labels"],
    }
    for name, row in rows.items():
        cells = [row.get(key) for key in ("gold", "correct", "gold_sampled", "correct_sampled")]
        table.add_row(name, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    console = Console()
    console.print(table)
    pmp, gain = found["pmp"], found["pmp"]["gain"]
    console.print(
        f"reward model, best of {len(RATES)} rates, {pmp['pairs_compared']} pairs: "
        f"with PMP {pmp['best_with_pmp']:.1%}, without {pmp['best_without_pmp']:.1%}, "
        f"gain {gain['difference']:+.1%} [{gain['low']:+.1%}, {gain['high']:+.1%}]"
    )
    console.print(f"Everything is in {recipe.output_dir}/controls/.", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
