"""DPO, rejection sampling and PPO from the same SFT model, on the comparisons that the reward model learnt from.

    python examples/experiments/preference_methods.py RUN [RUN …] [--out FOLDER] [--only NAME …]
    python examples/experiments/preference_methods.py RUN --sweep [--out FOLDER]

Each RUN is the folder of a finished `align quickstart`, one a seed; nothing is written to it. PPO is the run's own.
Rejection sampling draws as many replies as PPO did and trains on the best; "DPO on sampled pairs" trains on the best
against the worst of the same ones. DPO itself draws none and reads the comparisons. The run's reward model has seen the
crowd's comparisons before them (PMP): the arms "without PMP" have the one that has not, and so the data of DPO alone.

All are judged on the held-out prompts by the gold score, which training has not seen. An arm is made in a process of
its own, so that its seconds and its memory are its own. What is finished in FOLDER is not made again. `--sweep` tries
learning rates of DPO on one run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from align.evaluation.compare import mean, paired_difference
from align.evaluation.replies import JudgedReply
from align.recipe import Recipe
from align.recipe.dpo_section import DPOSection
from align.recipe.fields import Source
from align.recipe.lineage import model_dir, stage_dir
from align.recipe.rejection_section import RejectionSection
from align.runs.launch import guarded, prepare
from align.runs.seeding import derive
from align.runtime.files import write_json
from align.runtime.json_files import read_object
from align.runtime.memory import peak_memory_gib
from align.stages import best_replies, candidates, policy_evaluation, run_rejection
from align.stages.common import read_rows, read_summary
from align.stages.distance import reply_kl
from align.stages.judges import judge_of
from align.stages.reward_controls import WITHOUT_PMP
from align.stages.run_dpo import run_dpo
from align.stages.run_ppo import run_ppo
from data_formats import write_jsonl
from data_formats.records import Comparison, Message, Prompt
from examples.experiments.estimators import spread
from examples.experiments.rejection_sampling import Settings, recipe_of, section, share_samples
from examples.experiments.seeds import interval

PROCESSES = get_context("spawn")  # a fork of a process that has computed with torch may wait for ever
COUNT = 8  # replies a prompt of the candidates
HELDOUT = 500  # pairs that DPO is measured on
ARMS = {
    "dpo": "DPO",
    "dpo_nll": "DPO, with 0.2 of the chosen replies' likelihood",
    "rejection_without_pmp": "rejection sampling, without PMP",
    "ppo_without_pmp": "PPO, without PMP",
    "rejection": "rejection sampling",
    "dpo_sampled": "DPO on sampled pairs",
    "ppo": "PPO",
}
COLUMNS = {
    "gold": "gold, greedy",
    "gold_sampled": "gold, T = 1",
    "correct": "correct, greedy",
    "correct_sampled": "correct, T = 1",
    "sums_sampled": "sums right, T = 1",
    "well_formed_sampled": "well-formed, T = 1",
    "kl": "KL, nats a reply",
    "tokens_sampled": "tokens a reply",
    "distinct_sampled": "distinct, T = 1",
}
SWEPT = ("gold", "gold_sampled", "correct", "correct_sampled", "well_formed_sampled", "kl")
COST = {"cpu_seconds": "CPU seconds", "peak_memory_gib": "memory, GiB"}


@dataclass(frozen=True, slots=True)
class Tuning:
    """What is chosen for DPO; the rest of its section is the reward model's."""

    learning_rate: float = 3e-4
    beta: float = 0.1
    nll_coef: float = 0.0

    @property
    def name(self) -> str:
        """Of its folder."""
        nll = f"_{self.nll_coef:g}" if self.nll_coef else ""
        return f"dpo_{self.learning_rate:g}_{self.beta:g}{nll}"


SWEEP = [Tuning(1e-4), Tuning(3e-4), Tuning(1e-3)]


def dpo_section(recipe: Recipe, tuning: Tuning, data: tuple[Source, ...] = ()) -> DPOSection:
    """DPO on the reward model's comparisons, or on others, with the reward model's batches and schedule."""
    names = ("max_length", "batch_size", "micro_batch_size", "lr_scheduler_type", "warmup_steps", "weight_decay")
    shared = {name: getattr(recipe.rm, name) for name in names}
    heldout = tuple(source.model_copy(update={"limit": HELDOUT}) for source in recipe.rm.eval_data)
    return DPOSection(data=data or recipe.rm.data, eval_data=heldout, **shared, **asdict(tuning))


def rejection_section(recipe: Recipe, reward: str) -> RejectionSection:
    """As many replies as PPO draws, `COUNT` to a prompt; the finetuning of the rejection-sampling study."""
    drawn = recipe.ppo.num_iterations * recipe.ppo.rollout_batch_size * recipe.ppo.rollout.num_generations
    settings = Settings(prompts=drawn // COUNT)
    return section(recipe, settings, COUNT, reward_from=str(stage_dir(recipe, reward) / "model"))


def make_candidates(recipe: Recipe, folder: Path, reward: str) -> None:
    """The first round's samples, as the rejection stage would sample them."""
    told = recipe.model_copy(update={"rejection": rejection_section(recipe, reward)})
    start = str(model_dir(recipe, "sft"))
    prompts, _, _ = run_rejection.read_prompts(told, told.rejection, start, "rejection")
    sampler = candidates.Sampler(told, start, "rejection")
    place = folder / run_rejection.ROUNDS / "1"
    candidates.sample_round(sampler, prompts, place, seed=derive(recipe.seed, "rejection", "round", 1))


def make_rejection(recipe: Recipe, folder: Path, reward: str) -> None:
    """Finetune on the best candidates."""
    share_samples(_candidates(folder, reward), folder, COUNT)
    run_rejection.run_rejection(recipe, section=rejection_section(recipe, reward), out_dir=folder)


def make_sampled_dpo(recipe: Recipe, folder: Path, reward: str) -> None:
    """DPO on the best candidate of each prompt against its worst."""
    rows = read_rows(_candidates(folder, reward) / run_rejection.ROUNDS / "1" / candidates.FILE)
    write_jsonl(folder / "pairs.jsonl", [pair for row in rows if (pair := best_against_worst(row)) is not None])
    pairs = Source(path=str((folder / "pairs.jsonl").resolve()))
    run_dpo(recipe, section=dpo_section(recipe, Tuning(), (pairs,)), out_dir=folder)


def best_against_worst(row: dict[str, Any]) -> Comparison | None:
    """Of the replies that ended, as rejection sampling would choose them; None where no two differ in their score."""
    turned = [one | {"score": -one["score"]} for one in row["replies"] if one["score"] is not None]
    best, worst = best_replies.best_reply(row, 1), best_replies.best_reply({"replies": turned}, 1)
    if best is None or worst is None or best.score == -worst.score:
        return None
    prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
    return Comparison(prompt, best.text, worst.text, category=row.get("category", ""))


def make_ppo(recipe: Recipe, folder: Path, reward: str) -> None:
    """The run's PPO stage on another reward model, which the critic starts from too; nothing is held out."""
    changes = {"reward": (), "reward_from": str(stage_dir(recipe, reward) / "model"), "eval_data": ()}
    run_ppo(recipe, section=recipe.ppo.model_copy(update=changes), out_dir=folder)


def make_dpo(recipe: Recipe, folder: Path, tuning: Tuning) -> None:
    """DPO on the comparisons themselves."""
    run_dpo(recipe, section=dpo_section(recipe, tuning), out_dir=folder)


MAKERS: dict[str, tuple[Callable[..., None], Any]] = {
    "dpo": (make_dpo, Tuning()),
    "dpo_nll": (make_dpo, Tuning(nll_coef=0.2)),
    "rejection": (make_rejection, "rm"),
    "dpo_sampled": (make_sampled_dpo, "rm"),
    "rejection_without_pmp": (make_rejection, WITHOUT_PMP),
    "ppo_without_pmp": (make_ppo, WITHOUT_PMP),
}


def _candidates(folder: Path, reward: str) -> Path:
    return folder.with_name(f"candidates_{reward}")


def outcome_of(run: Path, name: str, out: Path) -> dict[str, Any]:
    """The figures of one arm on one run; made where they are not there yet."""
    recipe = recipe_of(run)
    folder = out / f"seed{recipe.seed}" / name
    if name not in MAKERS:
        return _judged(recipe, name, stage_dir(recipe, name) / "model", folder, {})
    make, with_ = MAKERS[name]
    folder = folder.with_name(with_.name) if isinstance(with_, Tuning) else folder  # which a sweep may have made
    cost = {}
    if make in (make_rejection, make_sampled_dpo):
        cost["sampling"] = _made(make_candidates, recipe, _candidates(folder, with_), with_)
    cost |= _made(make, recipe, folder, with_)
    return _judged(recipe, name, folder / "model", folder, cost)


def _made(make: Callable[..., None], recipe: Recipe, folder: Path, with_: Any) -> dict[str, Any]:
    """What it cost; made in a process of its own unless that is done."""
    file = folder / "cost.json"
    if not file.is_file():
        with PROCESSES.Pool(1) as pool:
            write_json(file, pool.apply(_cost, (make, recipe, folder, with_)))
    return read_object(file, "remove it to have the arm made again")


def _cost(make: Callable[..., None], recipe: Recipe, folder: Path, with_: Any) -> dict[str, Any]:
    import align.trainers.dpo  # noqa: F401  heavy, and no part of what is measured

    began, clock = time.process_time(), time.perf_counter()
    make(recipe, folder, with_)
    seconds = {"cpu_seconds": time.process_time() - began, "seconds": time.perf_counter() - clock}
    return seconds | {"peak_memory_gib": peak_memory_gib()}


def _judged(recipe: Recipe, name: str, model: Path, folder: Path, cost: dict[str, Any]) -> dict[str, Any]:
    """The figures against the SFT model; judged in a process of its own unless that is done."""
    file = folder / "outcome.json"
    if not file.is_file():
        with PROCESSES.Pool(1) as pool:
            write_json(file, pool.apply(_figures, (recipe, name, model, folder)) | {"cost": cost})
    return read_object(file, "remove it to have the arm judged again")


def _figures(recipe: Recipe, name: str, model: Path, folder: Path) -> dict[str, Any]:
    prompts, start = policy_evaluation.eval_prompts(recipe), model_dir(recipe, "sft")
    rewards = [*policy_evaluation.gold_rewards(recipe), policy_evaluation.policy_reward(recipe)]
    before, after = (
        _replies(
            place / "replies.json", lambda path=path: policy_evaluation.judge_model(recipe, path, prompts, rewards)
        )
        for place, path in ((folder.parent, start), (folder, model))
    )
    judge = judge_of(recipe, "ppo", rewards[0])
    contest = policy_evaluation.Contest("sft", name, judge)
    won = policy_evaluation.winners(prompts, before, after, judge)
    found = policy_evaluation.comparison(prompts, before, after, won, contest, "gold")
    found |= _of_replies(after, prompts) | {"before": _of_replies(before, prompts) | {"kl": 0.0}, "seed": recipe.seed}
    found["kl"] = reply_kl(recipe, start, model, prompts, after["sampled"], recipe.ppo.rollout.batch_size)
    trained = read_summary(folder) or {}
    return found | {key: trained[key] for key in ("accuracy", "rows", "steps") if key in trained}


def _of_replies(judged: policy_evaluation.Judgements, prompts: list[Prompt]) -> dict[str, Any]:
    found = policy_evaluation.figures(judged, "gold")
    for way, suffix in (("greedy", ""), ("sampled", "_sampled")):
        replies = judged[way]
        sums = [row for row, prompt in zip(replies, prompts, strict=True) if prompt.category == "maths"]
        found[f"sums{suffix}"] = mean(policy_evaluation.scores(sums, "correct"))
        found[f"reward{suffix}"] = mean(policy_evaluation.scores(replies, "reward"))
        found[f"tokens{suffix}"] = fmean(reply.tokens for row in replies for reply in row)
        found[f"distinct{suffix}"] = policy_evaluation.distinct(replies)
        found[f"gold_by_prompt{suffix}"] = [fmean(row) for row in policy_evaluation.scores(replies, "gold")]
    return found


def _replies(file: Path, make: Callable[[], policy_evaluation.Judgements]) -> policy_evaluation.Judgements:
    if not file.is_file():
        write_json(file, {way: [[asdict(one) for one in row] for row in rows] for way, rows in make().items()})
    found = read_object(file, "remove it to have the replies sampled again")
    return {way: [[JudgedReply(**one) for one in row] for row in rows] for way, rows in found.items()}


def sweep(run: Path, out: Path) -> str:
    """A line a tuning of plain DPO."""
    recipe = recipe_of(run)
    rows = []
    for one in SWEEP:
        folder = out / f"seed{recipe.seed}" / one.name
        found = _judged(recipe, "dpo", folder / "model", folder, _made(make_dpo, recipe, folder, one))
        rows.append([f"{one.learning_rate:g}", *(f"{found[key]:.2f}" for key in SWEPT)])
    return _table(["learning rate", *(COLUMNS[key] for key in SWEPT)], rows)


def tables(found: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the seeds with the least and the most; gains and wins of each seed; costs; differences to DPO."""
    start = [one["before"] for one in start_of(found)]
    labelled = {"SFT, where all start": start} | {ARMS[name]: outcomes for name, outcomes in found.items()}
    rows = [
        [label, *(spread([one[key] for one in outcomes], 2) for key in COLUMNS)] for label, outcomes in labelled.items()
    ]
    parts = [_table(["arm", *COLUMNS.values()], rows)]
    rows = [[label, *map(_won, outcomes)] for label, outcomes in list(labelled.items())[1:]]
    parts.append(_table(["gold, T = 1; won of SFT", *(f"seed {one['seed']}" for one in start_of(found))], rows))
    rows = [[ARMS[name], *_costs(outcomes)] for name, outcomes in found.items() if outcomes[0]["cost"]]
    parts.append(_table(["arm", *COST.values(), "of sampling"], rows))
    if "dpo" in found:
        others = [name for name in found if name != "dpo"]
        rows = [[ARMS[name], *(_apart(found["dpo"], found[name], way) for way in ("", "_sampled"))] for name in others]
        parts.append(_table(["gold of DPO minus that of", "greedy", "T = 1"], rows))
    return "\n\n".join(parts)


def start_of(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The outcomes of the first arm, one a seed."""
    return next(iter(found.values()))


def _won(one: dict[str, Any]) -> str:
    went = f"{one['before']['gold_sampled']:.2f} → {one['gold_sampled']:.2f}, {interval(one['gold_gain_sampled'])}"
    shares = (100 * one["win_rates"]["sampled"][key] for key in ("win_share", "low", "high"))
    return f"{went}; {{:.0f}} % [{{:.0f}}, {{:.0f}}]".format(*shares)


def _costs(outcomes: list[dict[str, Any]]) -> list[str]:
    costs = [one["cost"] for one in outcomes]
    sampling = [cost["sampling"]["cpu_seconds"] for cost in costs if "sampling" in cost]
    shown = [spread([cost["cpu_seconds"] for cost in costs], 0), spread([cost["peak_memory_gib"] for cost in costs], 2)]
    return [*shown, spread(sampling, 0) if sampling else ""]


def _apart(dpo: list[dict[str, Any]], other: list[dict[str, Any]], way: str) -> str:
    """Paired over the prompts of all seeds."""
    sides = [[[value] for one in outcomes for value in one[f"gold_by_prompt{way}"]] for outcomes in (other, dpo)]
    return interval(paired_difference(*sides))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    """Make every arm on every run and print the tables, or the sweep of DPO; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("runs/preference_methods"))
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=tuple(ARMS), default=tuple(ARMS))
    parser.add_argument("--sweep", action="store_true", help="DPO's learning rates, on the first RUN")
    args = parser.parse_args(argv)
    prepare()

    with guarded(proceed=f"python {' '.join(sys.argv)}") as ending:
        if args.sweep:
            print(sweep(args.runs[0], args.out))
        else:
            found = {name: [outcome_of(run, name, args.out) for run in args.runs] for name in args.only}
            print(tables(found))
    return ending.code


if __name__ == "__main__":
    sys.exit(main())
