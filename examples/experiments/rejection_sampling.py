"""What rejection sampling gives: K of 2, 4, 10 and 30, three rounds with and without the earlier bests, and with PPO.

    python examples/experiments/rejection_sampling.py RUN [RUN …] [--out FILE] [--prompts N] [--steps N]
        [--ppo-iterations N]

Each RUN is the output folder of a finished `align quickstart`, one a seed. Everything is written to
`RUN/experiments/rejection/`, a folder an arm; what is there is not made again, and an arm that was stopped goes on. All
arms of a run train on the same prompts with the same steps a round. Those of one round share their candidates: an arm
of K takes the first K of them; those of several rounds share their first round.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from align.recipe import Recipe, RecipeError, load_recipe
from align.recipe.fields import Source
from align.recipe.lineage import model_dir
from align.recipe.rejection_section import RejectionSection, SamplingSection
from align.runs.launch import guarded, prepare
from align.runtime import files
from align.runtime.errors import MissingFileError
from align.runtime.json_files import read_object
from align.runtime.lock import locked
from align.stages import candidates, common, policy_evaluation, run_ppo, run_rejection
from align.stages.common import Summary, read_summary
from data_formats.records import Prompt
from reward.protocol import Reward

FOLDER = "experiments/rejection"
NAMES = {
    "sft": "SFT",
    "rounds": "RS, {rounds} rounds of K = {count}, best of all rounds",
    "rounds_newest_only": "RS, {rounds} rounds of K = {count}, newest only",
    "ppo": "PPO alone",
    "rounds_then_ppo": "RS with all rounds, then PPO",
}
COLUMNS = ("gold", "correct", "reward", "gold_sampled", "correct_sampled", "distinct_sampled")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the arms cost.

    Attributes:
        prompts: how many prompts are sampled for.
        counts: K of the arms of one round; the largest is sampled, the others take its first replies.
        rounds, count: rounds and K of the arms of several rounds.
        steps, learning_rate: of each round's finetuning.
        ppo_iterations: of PPO on top of the rounds; None: as many as the chain's.
    """

    prompts: int = 300
    counts: tuple[int, ...] = (2, 4, 10, 30)
    rounds: int = 3
    count: int = 10
    steps: int = 30
    learning_rate: float = 5e-4
    ppo_iterations: int | None = None


def run_arms(folder: str | Path, settings: Settings) -> Summary:
    """Every arm on the run in `folder`: by the arm's name its `figures`, and `by_k` of the largest K.

    Raises:
        AlignError: no finished chain of the embedded world, or work of other settings lies in its folder.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # bars of every saved file would break the stages' own
    recipe = recipe_of(Path(folder))
    out = Path(folder) / FOLDER
    with locked(recipe.output_dir, ["experiments"]):
        require_same_settings(out / "settings.json", settings)
        prompts, rewards = policy_evaluation.eval_prompts(recipe), _rewards(recipe)
        found: dict[str, Summary] = {}
        for name, make in arms(recipe, settings, out).items():
            file = out / f"{name}.json"
            if not file.is_file():
                files.write_json(file, judged(recipe, make(), prompts, rewards))
            found[name] = read_object(file, "remove it to have it made again")
        largest = read_summary(out / f"k{max(settings.counts)}")
    return {"seed": recipe.seed, "arms": found, "by_k": largest["by_k"]}


def recipe_of(folder: Path) -> Recipe:
    """The recipe that the chain in `folder` ran with, writing to `folder`."""
    file = folder / "ppo" / "recipe.yaml"
    if not (folder / "summary.json").is_file() or not file.is_file():
        raise MissingFileError(f"{folder} holds no finished chain with ppo: name the folder of an `align quickstart`")
    recipe = load_recipe(file, [f"output_dir={folder}"])
    if recipe.tinyworld is None:
        raise RecipeError(["tinyworld: the arms need the gold score of the embedded world"], recipe.name)
    return recipe


def require_same_settings(file: Path, settings: Settings) -> None:
    """Raises RecipeError when `file` holds other settings; writes these where there are none."""
    now = {name: getattr(settings, name) for name in Settings.__slots__}
    now["counts"] = list(settings.counts)
    if not file.is_file():
        files.write_json(file, now)
    elif read_object(file, f"remove {file.parent} to run the arms anew") != now:
        raise RecipeError([f"holds arms of other settings; remove {file.parent} to run them anew"], str(file))


def arms(recipe: Recipe, settings: Settings, out: Path) -> dict[str, Callable[[], Path]]:
    """By name, what makes (or finds) an arm's model and returns its folder; in the order to be run."""
    largest = max(settings.counts)

    def once(count: int) -> Path:
        arm = out / f"k{count}"
        if count < largest:
            share_samples(out / f"k{largest}", arm, count)
        return sampled(arm, count)

    def often(name: str, keep_earlier: bool) -> Path:
        if settings.count in settings.counts:
            share_round(out / f"k{settings.count}", out / name)
        return sampled(out / name, settings.count, num_rounds=settings.rounds, keep_earlier=keep_earlier)

    def sampled(arm: Path, count: int, **keys: Any) -> Path:
        if not (arm / "summary.json").is_file():
            run_rejection.run_rejection(recipe, section=section(recipe, settings, count, **keys), out_dir=arm)
        return arm / "model"

    def then_ppo(start: Path) -> Path:
        iterations = settings.ppo_iterations or recipe.ppo.num_iterations
        changes = {"init_from": str(start), "num_iterations": iterations, "eval_data": ()}
        arm = out / "rounds_then_ppo"
        if not (arm / "summary.json").is_file():
            run_ppo.run_ppo(recipe, section=recipe.ppo.model_copy(update=changes), out_dir=arm)
        return arm / "model"

    made: dict[str, Callable[[], Path]] = {"sft": lambda: model_dir(recipe, "sft")}
    for count in sorted(settings.counts, reverse=True):
        made[f"k{count}"] = lambda count=count: once(count)
    made["rounds"] = lambda: often("rounds", keep_earlier=True)
    made["rounds_newest_only"] = lambda: often("rounds_newest_only", keep_earlier=False)
    made["ppo"] = lambda: model_dir(recipe, "ppo")
    made["rounds_then_ppo"] = lambda: then_ppo(out / "rounds" / "model")
    return made


def section(recipe: Recipe, settings: Settings, count: int, **keys: Any) -> RejectionSection:
    """The section of an arm: the chain's lengths, and the sft stage's schedule with the settings' steps and rate."""
    rollout = recipe.ppo.rollout
    lengths = {name: getattr(rollout, name) for name in ("max_prompt_length", "max_completion_length", "batch_size")}
    return RejectionSection(
        data=(Source(path="tinyworld:prompts", limit=settings.prompts),),
        rollout=SamplingSection(num_generations=count, **lengths),
        max_length=rollout.max_length,
        batch_size=recipe.sft.batch_size,
        micro_batch_size=recipe.sft.micro_batch_size,
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        weight_decay=recipe.sft.weight_decay,
        **keys,
    )


def share_samples(source: Path, arm: Path, count: int) -> None:
    """Give `arm` the first `count` candidates of `source`'s first round, unless it has candidates already."""
    place = Path(run_rejection.ROUNDS) / "1" / candidates.FILE
    if not (arm / place).is_file():
        rows = common.read_rows(source / place)
        common.write_rows(arm / place, [row | {"replies": row["replies"][:count]} for row in rows])


def share_round(source: Path, arm: Path) -> None:
    """Give `arm` the finished first round of `source`, which sampled and finetuned as it would, unless it has one."""
    place = Path(run_rejection.ROUNDS) / "1"
    if not (arm / place).is_dir():
        with files.atomic_dir(arm / place) as draft:
            shutil.copytree(source / place, draft, dirs_exist_ok=True)


def _rewards(recipe: Recipe) -> list[Reward]:
    return [*policy_evaluation.gold_rewards(recipe), policy_evaluation.policy_reward(recipe)]


def judged(recipe: Recipe, model: Path, prompts: list[Prompt], rewards: list[Reward]) -> Summary:
    """Gold score, share of correct replies and reward on the held-out prompts, greedy and (`_sampled`) one reply at
    temperature 1, and how many of the latter are different."""
    looked = recipe.ppo.evaluation.model_copy(update={"num_samples": 1})
    once = recipe.model_copy(update={"ppo": recipe.ppo.model_copy(update={"evaluation": looked})})
    found = policy_evaluation.judge_model(once, model, prompts, rewards)
    figures = policy_evaluation.figures(found, "gold")
    for decoding, suffix in (("greedy", ""), ("sampled", "_sampled")):
        figures |= policy_evaluation.figures({decoding: found[decoding]}, "reward")
        figures[f"distinct{suffix}"] = policy_evaluation.distinct(found[decoding])
    return figures


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
        settings = Settings(args.prompts, steps=args.steps, ppo_iterations=args.ppo_iterations)
        found = [run_arms(run, settings) for run in args.runs]
        print_tables(found, settings)
        if args.out is not None:
            files.write_json(args.out, found)
    return ending.code


def spread(values: list[float]) -> str:
    """The mean, and in brackets the least and the most where there are several."""
    ends = f" [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{ends}"


def print_tables(found: list[dict[str, Any]], settings: Settings) -> None:
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
