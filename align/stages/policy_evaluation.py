"""What the policies are worth on the held-out prompts: SFT, rejection sampling and PPO, decoded identically, greedily
and at temperature 1.

Called when the sft, rejection and ppo stages are done. With the embedded world the judge is its gold
score, which nothing before this has seen; else ppo's `gold_reward` where the recipe has one; without either, only the
reward model itself is at hand, and the figures say so (`judge`).
`eval.jsonl` has a line a prompt with every reply and score; all figures can be recomputed from it. Figures without
`_sampled` are of the greedy replies. What stands under `sft_` in `eval.jsonl` is the policy that the stage started from
(ppo's is that of rejection where there is one).
"""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import Any

from align.evaluation import compare
from align.evaluation.replies import JudgedReply, decodings, judged_replies
from align.recipe import Recipe
from align.recipe.lineage import init_origin, model_dir, stage_dir
from align.recipe.registry import SAMPLING_STAGES
from align.runs.seeding import derive
from align.stages import common
from align.stages.common import Summary
from align.tinyworld.gold import Correctness, GoldScore, WellFormed
from align.tinyworld.world import World
from data_formats.records import Prompt
from reward.protocol import Reward, RewardError

Judgements = dict[str, list[list[JudgedReply]]]  # decoding -> prompt -> replies


def evaluate_sft(recipe: Recipe, stage: str, summary: Summary) -> Summary:
    """Gold score and share of correct replies of the SFT model; `sft/eval.jsonl`."""
    judging = next((name for name in reversed(SAMPLING_STAGES) if _has_prompts(recipe, name)), None)
    if recipe.tinyworld is None or judging is None or not common.is_main():
        return {}
    model = model_dir(recipe, "sft")  # what the judging stage starts from may be trained later
    prompts = eval_prompts(recipe, judging, model)
    judged = judge_model(recipe, model, prompts, gold_rewards(recipe), judging)
    write_judgements(stage_dir(recipe, "sft") / "eval.jsonl", prompts, {"sft": judged})
    return figures(judged, "gold") | {
        "headline": [("gold score, greedy replies", None, figures(judged, "gold")["gold"])]
    }


def evaluate_policy(recipe: Recipe, stage: str, summary: Summary) -> Summary:
    """The policy before and after a stage that samples (rejection, ppo) side by side; `<stage>/eval.jsonl`."""
    if not _has_prompts(recipe, stage) or not common.is_main():
        return {}
    prompts = eval_prompts(recipe, stage)
    origin = common.origin_path(recipe, init_origin(recipe, stage), stage=stage)
    return compare_policies(recipe, stage_dir(recipe, stage), origin, prompts, stage)


def _has_prompts(recipe: Recipe, stage: str) -> bool:
    section = getattr(recipe, stage)
    return section is not None and bool(section.eval_data)


def compare_policies(
    recipe: Recipe, out_dir: Path, before_path: str | Path, prompts: list[Prompt], stage: str = "ppo"
) -> Summary:
    """Judge `before_path` and `<out_dir>/model` on `prompts`, write `<out_dir>/eval.jsonl`, return the figures."""
    rewards = [*(gold_rewards(recipe) or watched_rewards(recipe, stage)), policy_reward(recipe, stage)]
    before = judge_model(recipe, before_path, prompts, rewards, stage)
    after = judge_model(recipe, out_dir / "model", prompts, rewards, stage)
    write_judgements(out_dir / "eval.jsonl", prompts, {"sft": before, stage: after})
    return comparison(*_judged(prompts, before, after), rewards[0].name)


def _judged(
    prompts: list[Prompt], before: Judgements, after: Judgements
) -> tuple[list[Prompt], Judgements, Judgements]:
    """Without the prompts that a reward failed on a reply of (`on_reward_error: mask`).

    Raises:
        RewardError: none is left.
    """
    failed = {
        at
        for judged in (before, after)
        for replies in judged.values()
        for at, row in enumerate(replies)
        if any(math.isnan(score) for one in row for score in one.scores.values())
    }
    if not failed:
        return prompts, before, after
    kept = [at for at in range(len(prompts)) if at not in failed]
    if not kept:
        raise RewardError("the reward failed on a reply to each held-out prompt, so there is nothing to compare")
    common.LOG.warning("%d held-out prompts are in no comparison: the reward failed on a reply to them", len(failed))
    rows = ({way: [replies[at] for at in kept] for way, replies in one.items()} for one in (before, after))
    return [prompts[at] for at in kept], *rows


def comparison(prompts: list[Prompt], before: Judgements, after: Judgements, judge: str) -> Summary:
    """The figures of `after` beside `before`, by the reward named `judge`."""
    found: Summary = {"judge": judge, **figures(after, judge)}
    categories = [prompt.category for prompt in prompts]
    for decoding, replies in after.items():
        suffix = "" if decoding == "greedy" else f"_{decoding}"
        old, new = scores(before[decoding], judge), scores(replies, judge)
        counts = compare.win_tie_loss(old, new, categories)
        found |= {f"{key}{suffix}": count for key, count in counts["all"].items()}
        found[f"by_category{suffix}"] = {name: part for name, part in counts.items() if name not in ("all", "")}
        found[f"decided_won{suffix}"] = compare.decided_share(counts["all"])
        found[f"{judge}_gain{suffix}"] = compare.paired_difference(old, new)
        if "correct" in replies[0][0].scores:
            old, new = scores(before[decoding], "correct"), scores(replies, "correct")
            found[f"correct_gain{suffix}"] = compare.paired_difference(old, new)
        found[f"distinct{suffix}"] = distinct(replies)
    return found | {"headline": headline(found, before, judge)}


def headline(found: Summary, before: Judgements, judge: str) -> list[tuple[str, Any, Any]]:
    """Rows of the chain's table."""
    rows: list[tuple[str, Any, Any]] = []
    for decoding in before:
        suffix, how = ("", "greedy") if decoding == "greedy" else (f"_{decoding}", "temperature 1")
        old = figures({decoding: before[decoding]}, judge)
        rows += [
            (f"{name}, {how}", old[f"{name}{suffix}"], found[f"{name}{suffix}"])
            for name in (judge, "correct")
            if f"{name}{suffix}" in found
        ]
        counts = " / ".join(str(found[f"{key}{suffix}"]) for key in ("win", "tie", "loss"))
        rows.append((f"win / tie / loss, {how}", None, counts))
    return rows


def figures(judged: Judgements, judge: str) -> Summary:
    """Mean score, shares of correct replies, of well-formed ones and of finished ones, by decoding."""
    found: Summary = {}
    for decoding, replies in judged.items():
        suffix = "" if decoding == "greedy" else f"_{decoding}"
        for name in (judge, "correct", "well_formed"):
            if name in replies[0][0].scores:
                found[f"{name}{suffix}"] = compare.mean(scores(replies, name))
        found[f"finished{suffix}"] = compare.mean([[float(one.finished) for one in row] for row in replies])
    return found


def scores(replies: list[list[JudgedReply]], name: str) -> list[list[float]]:
    """One reward's scores, a list a prompt."""
    return [[one.scores[name] for one in row] for row in replies]


def distinct(replies: list[list[JudgedReply]]) -> float:
    """Share of different texts among all replies."""
    texts = [one.text for row in replies for one in row]
    return len(set(texts)) / len(texts)


def eval_prompts(recipe: Recipe, stage: str = "ppo", path: str | Path | None = None) -> list[Prompt]:
    """The held-out prompts of the section of `stage` as the stage itself takes them (see `align.stages.prompts`), by
    the tokenizer at `path` (default: of what the stage starts from)."""
    from align.data.load import load_records
    from align.models.tokenizer import recipe_tokenizer
    from align.stages.prompts import fitting

    section = getattr(recipe, stage)
    path = path or common.origin_path(recipe, init_origin(recipe, stage), stage=stage)
    tokenizer = recipe_tokenizer(str(path), recipe.model)
    prompts, _ = load_records(section.eval_data, Prompt, recipe)
    prompts, _ = fitting(prompts, tokenizer, section.rollout, f"{stage}.eval_data")
    return prompts[: section.evaluation.limit]


def gold_rewards(recipe: Recipe) -> list[Reward]:
    """The gold score, correctness and well-formedness of the embedded world; nothing for other recipes."""
    if recipe.tinyworld is None:
        return []
    world = World(recipe.seed)
    return [GoldScore(world), Correctness(world), WellFormed(world)]


def watched_rewards(recipe: Recipe, stage: str = "ppo") -> list[Reward]:
    """`gold_reward` of ppo, where it has one."""
    watched = bool(getattr(getattr(recipe, stage), "gold_reward", ()))
    return [_reward(recipe, stage, "gold_reward")] if watched else []


def policy_reward(recipe: Recipe, stage: str = "ppo") -> Reward:
    """The reward that `stage` is trained on, named `reward`."""
    return _reward(recipe, stage, "reward")


def _reward(recipe: Recipe, stage: str, key: str) -> Reward:
    from align.models.tokenizer import recipe_tokenizer
    from align.stages.rewards import build_reward

    path = common.origin_path(recipe, init_origin(recipe, stage), stage=stage)
    tokenizer = recipe_tokenizer(path, recipe.model)
    return build_reward(recipe, tokenizer, stage=stage, key=key, name=key, device=common.device())


def judge_model(
    recipe: Recipe, path: str | Path, prompts: list[Prompt], rewards: list[Reward], stage: str = "ppo"
) -> Judgements:
    """Replies of the model at `path`, decoded as `align.evaluation` always does, judged by every reward."""
    from align.models.load import load_causal_lm
    from align.models.tokenizer import recipe_tokenizer
    from align.trainers.engines import sampling_engine

    model, section = recipe.model, getattr(recipe, stage)
    rollout = section.rollout
    tokenizer = recipe_tokenizer(str(path), model)
    seed = derive(recipe.seed, "outcome")
    ways = decodings(
        tokenizer,
        num_samples=section.evaluation.num_samples,
        max_new_tokens=rollout.max_completion_length,
        seed=seed,
    )
    policy = load_causal_lm(str(path), model, tokenizer=tokenizer, use="frozen").to(common.device())
    engine = sampling_engine(rollout, policy, tokenizer.pad_token_id, seed=seed, temperature=1.0)
    with closing(engine):
        return {
            name: judged_replies(engine, tokenizer, prompts, params, rewards, section.on_reward_error)
            for name, params in ways.items()
        }


def write_judgements(path: Path, prompts: list[Prompt], policies: dict[str, Judgements]) -> None:
    """A line a prompt: prompt, category, each policy's greedy reply and its scores, and the sampled replies."""
    lines = []
    for index, prompt in enumerate(prompts):
        line: dict[str, Any] = {"prompt": prompt.messages[-1].content, "category": prompt.category}
        for name, judged in policies.items():
            line |= {f"{name}_{key}": value for key, value in judged["greedy"][index][0].row().items()}
        if all("sampled" in judged for judged in policies.values()):
            sampled = {name: judged["sampled"][index] for name, judged in policies.items()}
            line["sampled"] = {name: [one.row() for one in replies] for name, replies in sampled.items()}
        lines.append(line)
    common.write_lines(path, lines)
