"""What the policies are worth on the held-out prompts: SFT and PPO, decoded identically, greedily and at temperature 1.

Hooks of the sft and ppo stages, called when they are done. With the embedded world the judge is its gold score, which
nothing before this has seen; without it, only the reward model itself is at hand, and the figures say so (`judge`).
`eval.jsonl` has a line a prompt with every reply and score; all figures can be recomputed from it. Figures without
`_sampled` are of the greedy replies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.evaluation import compare
from align.evaluation.replies import Judged, decodings, judged_replies
from align.recipe import Recipe
from align.recipe.lineage import init_origin, model_dir, stage_dir
from align.runs.seeding import derive
from align.stages import common
from align.stages.common import Summary
from align.tinyworld.gold import GOLD_RANGE, Correctness, GoldScore, WellFormed
from align.tinyworld.world import World
from data_formats.records import Prompt
from reward.protocol import Reward

Outcome = dict[str, list[list[Judged]]]  # decoding -> prompt -> replies


def sft(recipe: Recipe, stage: str, summary: Summary) -> Summary:
    """Gold score and share of correct replies of the SFT model; `sft/eval.jsonl`."""
    if recipe.tinyworld is None or recipe.ppo is None or not recipe.ppo.eval_data or not common.is_main():
        return {}
    prompts = eval_prompts(recipe)
    outcome = judge_model(recipe, model_dir(recipe, "sft"), prompts, gold_rewards(recipe))
    write_outcome(stage_dir(recipe, "sft") / "eval.jsonl", prompts, {"sft": outcome})
    return figures(outcome, "gold") | {
        "headline": [("gold score, greedy replies", None, figures(outcome, "gold")["gold"])]
    }


def ppo(recipe: Recipe, stage: str, summary: Summary) -> Summary:
    """SFT and PPO side by side; `ppo/eval.jsonl`."""
    if not recipe.ppo.eval_data or not common.is_main():
        return {}
    prompts = eval_prompts(recipe)
    origin = common.origin_path(recipe, init_origin(recipe, "ppo"), stage=stage)
    return compare_policies(recipe, stage_dir(recipe, "ppo"), origin, prompts)


def compare_policies(recipe: Recipe, out_dir: Path, before_path: str | Path, prompts: list[Prompt]) -> Summary:
    """Judge `before_path` and `<out_dir>/model` on `prompts`, write `<out_dir>/eval.jsonl`, return the figures."""
    rewards = [*gold_rewards(recipe), policy_reward(recipe)]
    before = judge_model(recipe, before_path, prompts, rewards)
    after = judge_model(recipe, out_dir / "model", prompts, rewards)
    write_outcome(out_dir / "eval.jsonl", prompts, {"sft": before, "ppo": after})
    return comparison(prompts, before, after, rewards[0].name)


def comparison(prompts: list[Prompt], before: Outcome, after: Outcome, judge: str) -> Summary:
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


def headline(found: Summary, before: Outcome, judge: str) -> list[tuple[str, Any, Any]]:
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


def figures(outcome: Outcome, judge: str) -> Summary:
    """Mean score, shares of correct replies, of well-formed ones and of finished ones, by decoding."""
    found: Summary = {}
    for decoding, replies in outcome.items():
        suffix = "" if decoding == "greedy" else f"_{decoding}"
        for name in (judge, "correct", "well_formed"):
            if name in replies[0][0].scores:
                found[f"{name}{suffix}"] = compare.mean(scores(replies, name))
        found[f"finished{suffix}"] = compare.mean([[float(one.finished) for one in row] for row in replies])
    return found


def scores(replies: list[list[Judged]], name: str) -> list[list[float]]:
    """One reward's scores, a list a prompt."""
    return [[one.scores[name] for one in row] for row in replies]


def distinct(replies: list[list[Judged]]) -> float:
    """Share of different texts among all replies."""
    texts = [one.text for row in replies for one in row]
    return len(set(texts)) / len(texts)


def eval_prompts(recipe: Recipe) -> list[Prompt]:
    """The held-out prompts of the ppo section that are no longer than its `max_prompt_length`."""
    from align.data.load import load_records
    from align.models.tokenizer import load_tokenizer
    from align.stages.ppo import fitting

    path = common.origin_path(recipe, init_origin(recipe, "ppo"), stage="ppo")
    tokenizer = load_tokenizer(path, trust_remote_code=recipe.model.trust_remote_code)
    prompts, _ = load_records(recipe.ppo.eval_data, Prompt, recipe)
    prompts, _ = fitting(prompts, tokenizer, recipe.ppo, "eval_data")
    return prompts[: recipe.ppo.evaluation.limit]


def gold_rewards(recipe: Recipe) -> list[Reward]:
    """The gold score, correctness and well-formedness of the embedded world; nothing for other recipes."""
    if recipe.tinyworld is None:
        return []
    world = World(recipe.seed)
    return [GoldScore(world), Correctness(world), WellFormed(world)]


def policy_reward(recipe: Recipe) -> Reward:
    """The reward that ppo is trained on, named `reward`."""
    from align.models.tokenizer import load_tokenizer
    from align.stages.rewards import build_reward

    path = common.origin_path(recipe, init_origin(recipe, "ppo"), stage="ppo")
    tokenizer = load_tokenizer(path, trust_remote_code=recipe.model.trust_remote_code)
    return build_reward(recipe, tokenizer, name="reward")


def judge_model(recipe: Recipe, path: str | Path, prompts: list[Prompt], rewards: list[Reward]) -> Outcome:
    """Replies of the model at `path`, decoded as `align.evaluation` always does, judged by every reward."""
    from align.models.load import load_causal_lm
    from align.models.tokenizer import load_tokenizer
    from rollouts.select import make_engine

    model, rollout = recipe.model, recipe.ppo.rollout
    revision = model.revision if str(path) == model.path else None
    tokenizer = load_tokenizer(str(path), trust_remote_code=model.trust_remote_code, revision=revision)
    engine = make_engine(
        rollout.engine,
        load_causal_lm(str(path), model),
        pad_token_id=tokenizer.pad_token_id,
        batch_size=rollout.batch_size,
    )
    ways = decodings(
        tokenizer,
        num_samples=recipe.ppo.evaluation.num_samples,
        max_new_tokens=rollout.max_completion_length,
        seed=derive(recipe.seed, "outcome"),
    )
    return {name: judged_replies(engine, tokenizer, prompts, params, rewards) for name, params in ways.items()}


def write_outcome(path: Path, prompts: list[Prompt], outcomes: dict[str, Outcome]) -> None:
    """A line a prompt: prompt, category, each policy's greedy reply and its scores, and the sampled replies."""
    lines = []
    for index, prompt in enumerate(prompts):
        line: dict[str, Any] = {"prompt": prompt.messages[-1].content, "category": prompt.category}
        for name, outcome in outcomes.items():
            line |= {f"{name}_{key}": value for key, value in outcome["greedy"][index][0].row().items()}
        if all("sampled" in outcome for outcome in outcomes.values()):
            line["sampled"] = {
                name: [one.row() for one in outcome["sampled"][index]] for name, outcome in outcomes.items()
            }
        lines.append(line)
    common.write_lines(path, lines)


def read_outcome(path: Path, name: str) -> list[dict[str, Any]]:
    """The sampled replies of one policy in `eval.jsonl`, a list of rows a prompt."""
    return [json.loads(line)["sampled"][name] for line in path.read_text(encoding="utf-8").splitlines()]


def chain(recipe: Recipe, summary: Summary) -> Summary:
    """Chain hook: the range of the gold score."""
    return {"gold_range": list(GOLD_RANGE)} if recipe.tinyworld is not None else {}
