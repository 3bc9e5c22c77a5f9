"""What the policies are worth on the held-out prompts: SFT, rejection sampling and PPO, decoded identically, greedily
and at temperature 1.

Called when the sft, rejection and ppo stages are done (dpo: `align.stages.dpo_evaluation`). Who decides between the
policies before and after a stage is said in `align.stages.judges`, and in words in the summary (`judged_by`); a judge
that is a reward does so by the scores that stand in `eval.jsonl`, any other by what it says of each pair of replies,
which stands there under `verdicts`. `eval.jsonl` has a line a prompt with every reply and score; all figures can be
recomputed from it. Figures without `_sampled` are of the greedy replies. What stands under `sft_` in `eval.jsonl` is
the policy that the stage started from (ppo's is that of dpo or rejection where there is one).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from align.evaluation import compare
from align.evaluation.replies import JudgedReply
from align.evaluation.wins import ComparedPair, win_rates
from align.recipe import Recipe
from align.recipe.lineage import init_origin, model_dir, stage_dir
from align.recipe.registry import SAMPLING_STAGES
from align.recipe.sources import world_seed
from align.runs.errors import TrainingError
from align.runtime.ranks import agree, of_first
from align.stages import common
from align.stages.common import Summary
from align.stages.heldout_replies import Judgements, replies_of
from align.stages.judges import judge_of, model_name, recipe_judge
from align.stages.own_replies import reward_on_own
from align.stages.rewards import build_reward
from align.tinyworld.gold import Correctness, GoldScore, WellFormed
from align.tinyworld.world import World
from data_formats.records import Prompt
from reward.failures import OnRewardError
from reward.judges.failures import ask
from reward.judges.protocol import Judge, ReplyPair, Winner
from reward.judges.rewards import RewardJudge, by_scores
from reward.protocol import Reward, RewardError

Winners = dict[str, list[list[list[Winner | None]]]]  # decoding -> prompt -> pair of replies -> of each judgment
OUTCOMES = ("win", "tie", "loss")
VERDICTS = {"second": "win", "tie": "tie", "first": "loss", None: None}  # of the later policy


def evaluate_sft(recipe: Recipe, stage: str, summary: Summary) -> Summary:
    """Gold score and share of correct replies of the SFT model; `sft/eval.jsonl`."""
    judging = next((name for name in reversed(SAMPLING_STAGES) if _has_prompts(recipe, name)), None)
    if recipe.tinyworld is None or judging is None:
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
    if not _has_prompts(recipe, stage):
        return {}
    prompts = eval_prompts(recipe, stage)
    origin = common.origin_path(recipe, init_origin(recipe, stage), stage=stage)
    return compare_policies(recipe, stage_dir(recipe, stage), origin, prompts, stage)


def _has_prompts(recipe: Recipe, stage: str) -> bool:
    section = getattr(recipe, stage)
    return section is not None and bool(section.eval_data)


@dataclass(frozen=True, slots=True)
class Contest:
    """Which two policies are compared, by name, and who decides; the second is the later one."""

    first: str
    second: str
    judge: Judge


def compare_policies(
    recipe: Recipe, out_dir: Path, before_path: str | Path, prompts: list[Prompt], stage: str = "ppo"
) -> Summary:
    """Judge `before_path` and `<out_dir>/model` on `prompts`, write `<out_dir>/eval.jsonl`, return the figures.

    Every rank calls it, and samples and scores replies to its share of the prompts; a judge that is no reward is asked
    by the first one, whose answers are kept in one file.

    Raises:
        RewardError: a reward or the judge failed; what was paid for is kept, and the same call goes on.
    """
    tokenizer = _tokenizer(recipe, stage)

    def judges() -> tuple[Judge | None, list[Reward]]:
        judge = recipe_judge(recipe, tokenizer, stage=stage, out_dir=out_dir, device=common.device())
        rewards = [judge.reward] if isinstance(judge, RewardJudge) else []
        rewards += gold_rewards(recipe) or watched_rewards(recipe, stage)
        return judge, [*rewards, policy_reward(recipe, stage)]

    judge, rewards = agree(judges, TrainingError)
    before = judge_model(recipe, before_path, prompts, rewards, stage)
    after = judge_model(recipe, out_dir / "model", prompts, rewards, stage)
    contest = Contest(model_name(before_path), out_dir.name, judge or judge_of(recipe, stage, rewards[0]))
    told = partial(_concluded, recipe, stage, out_dir, prompts, before, after, contest, rewards[0].name)
    return of_first(told, TrainingError)


def _concluded(
    recipe: Recipe,
    stage: str,
    out_dir: Path,
    prompts: list[Prompt],
    before: Judgements,
    after: Judgements,
    contest: Contest,
    measure: str,
) -> Summary:
    """Ask the judge, write the file, work out the figures."""
    on_error = "retry" if getattr(recipe, stage).on_reward_error == "retry" else "stop"
    won = winners(prompts, before, after, contest.judge, on_error)
    told = None if isinstance(contest.judge, RewardJudge) else won
    write_judgements(out_dir / "eval.jsonl", prompts, {"sft": before, stage: after}, told)
    found = comparison(prompts, before, after, won, contest, measure)
    sampled = (before["sampled"], after["sampled"]) if "sampled" in after else None
    own = reward_on_own(recipe, stage, prompts, sampled, contest.judge, on_error)
    return found | own | {"headline": [*found["headline"], *own.get("headline", [])]}


def winners(
    prompts: list[Prompt], before: Judgements, after: Judgements, judge: Judge, on_error: OnRewardError = "stop"
) -> Winners:
    """Who won each pair of replies, `second` being the later policy's.

    A judge that is a reward has scored them already; prompts that a reward failed on are in no comparison then.
    """
    if isinstance(judge, RewardJudge):
        name, failed = judge.reward.name, failed_prompts(before, after)
        return {
            way: [
                [[] if at in failed else [by_scores(old.scores[name], new.scores[name]).winner] for old, new in pairs]
                for at, pairs in enumerate(_paired(before[way], replies))
            ]
            for way, replies in after.items()
        }
    asked = [
        ReplyPair(*(one.sample(prompt) for one in pair))
        for way, replies in after.items()
        for prompt, pairs in zip(prompts, _paired(before[way], replies), strict=True)
        for pair in pairs
    ]
    said = iter(ask(judge, asked, on_error))
    return {
        way: [[[one.winner for one in next(said)] for _ in row] for row in replies] for way, replies in after.items()
    }


def _paired(
    before: list[list[JudgedReply]], after: list[list[JudgedReply]]
) -> Iterator[list[tuple[JudgedReply, JudgedReply]]]:
    """Of each prompt, the replies with the same number."""
    return (list(zip(*rows, strict=True)) for rows in zip(before, after, strict=True))


def failed_prompts(before: Judgements, after: Judgements) -> set[int]:
    """The prompts that a reward failed on a reply to (`on_reward_error: mask`)."""
    return {
        at
        for judged in (before, after)
        for replies in judged.values()
        for at, row in enumerate(replies)
        if any(math.isnan(score) for one in row for score in one.scores.values())
    }


def _scored(before: Judgements, after: Judgements) -> tuple[Judgements, Judgements]:
    """Without the prompts that a reward failed on.

    Raises:
        RewardError: none is left.
    """
    failed, count = failed_prompts(before, after), len(after["greedy"])
    if not failed:
        return before, after
    if len(failed) == count:
        raise RewardError("the reward failed on a reply to each held-out prompt, so there is nothing to compare")
    told = "%d held-out prompts are in no comparison of scores: the reward failed on a reply to them"
    common.LOG.warning(told, len(failed))
    kept = [at for at in range(count) if at not in failed]
    return tuple({way: [replies[at] for at in kept] for way, replies in one.items()} for one in (before, after))


def comparison(
    prompts: list[Prompt], before: Judgements, after: Judgements, won: Winners, contest: Contest, measure: str
) -> Summary:
    """The figures of `after` beside `before`: who won, and the scores of the reward named `measure`."""
    found: Summary = {"judge": contest.judge.name, "judged_by": contest.judge.described, "win_rates": {}}
    for decoding, replies in after.items():
        suffix, rates = _suffix(decoding), _rates(prompts, before[decoding], replies, won[decoding], contest)
        found["win_rates"][decoding] = rates
        found |= {f"{key}{suffix}": rates[key] for key in OUTCOMES}
        by_category = {name: {key: part[key] for key in OUTCOMES} for name, part in rates["by_category"].items()}
        found |= {f"by_category{suffix}": by_category, f"decided_won{suffix}": compare.decided_share(rates)}
        if not rates["judgments"]:
            told = "%s: the judge has no verdict on any of the %s replies to held-out prompts (judged by %s)"
            common.LOG.warning(told, contest.second, decoding, contest.judge.described)
    before, after = _scored(before, after)
    found |= figures(after, measure)
    for decoding, replies in after.items():
        for name in dict.fromkeys((measure, "gold", "correct")):
            if name in replies[0][0].scores:
                pair = (scores(one[decoding], name) for one in (before, after))
                found[f"{name}_gain{_suffix(decoding)}"] = compare.paired_difference(*pair)
        found[f"distinct{_suffix(decoding)}"] = distinct(replies)
    return found | {"headline": headline(found, before, contest, measure)}


def _suffix(decoding: str) -> str:
    return "" if decoding == "greedy" else f"_{decoding}"


def _rates(
    prompts: list[Prompt],
    before: list[list[JudgedReply]],
    after: list[list[JudgedReply]],
    won: list[list[list[Winner | None]]],
    contest: Contest,
) -> dict[str, Any]:
    pairs = [
        ComparedPair(at, said, prompt.category, len(new.text) - len(old.text))
        for at, (prompt, replies, answers) in enumerate(zip(prompts, _paired(before, after), won, strict=True))
        for (old, new), said in zip(replies, answers, strict=True)
    ]
    return win_rates(pairs, judged_by=contest.judge.described, first=contest.first, second=contest.second)


def headline(found: Summary, before: Judgements, contest: Contest, measure: str) -> list[tuple[str, Any, Any]]:
    """Rows of the chain's table."""
    rows: list[tuple[str, Any, Any]] = []
    for decoding in before:
        suffix, how = _suffix(decoding), "greedy" if decoding == "greedy" else "temperature 1"
        old = figures({decoding: before[decoding]}, measure)
        rows += [
            (f"{name}, {how}", old[f"{name}{suffix}"], found[f"{name}{suffix}"])
            for name in dict.fromkeys((measure, "gold", "correct"))
            if f"{name}{suffix}" in found
        ]
        counts = " / ".join(str(found[f"{key}{suffix}"]) for key in OUTCOMES)
        between = f"win / tie / loss of {contest.second} against {contest.first}"
        rows.append((f"{between}, {how}, judged by {contest.judge.described}", None, counts))
    return rows


def figures(judged: Judgements, measure: str) -> Summary:
    """Mean score, shares of correct replies, of well-formed ones and of finished ones, by decoding."""
    found: Summary = {}
    for decoding, replies in judged.items():
        for name in dict.fromkeys((measure, "gold", "correct", "well_formed")):
            if name in replies[0][0].scores:
                found[f"{name}{_suffix(decoding)}"] = compare.mean(scores(replies, name))
        finished = [[float(one.finished) for one in row] for row in replies]
        found[f"finished{_suffix(decoding)}"] = compare.mean(finished)
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
    world = World(world_seed(recipe))
    return [GoldScore(world), Correctness(world), WellFormed(world)]


def watched_rewards(recipe: Recipe, stage: str = "ppo") -> list[Reward]:
    """`gold_reward` of ppo, where it has one."""
    watched = bool(getattr(getattr(recipe, stage), "gold_reward", ()))
    return [_reward(recipe, stage, "gold_reward")] if watched else []


def policy_reward(recipe: Recipe, stage: str = "ppo") -> Reward:
    """The reward that `stage` is trained on, named `reward`."""
    return _reward(recipe, stage, "reward")


def _reward(recipe: Recipe, stage: str, key: str) -> Reward:
    tokenizer = _tokenizer(recipe, stage)
    return build_reward(recipe, tokenizer, stage=stage, key=key, name=key, device=common.device())


def _tokenizer(recipe: Recipe, stage: str) -> Any:
    """Of what the stage starts from."""
    from align.models.tokenizer import recipe_tokenizer

    return recipe_tokenizer(common.origin_path(recipe, init_origin(recipe, stage), stage=stage), recipe.model)


def judge_model(
    recipe: Recipe, path: str | Path, prompts: list[Prompt], rewards: list[Reward], stage: str = "ppo"
) -> Judgements:
    """`replies_of` the model at `path`, sampled as the section of `stage` says."""
    section = getattr(recipe, stage)
    samples = section.evaluation.num_samples
    return replies_of(recipe, path, prompts, rewards, section.rollout, samples, section.on_reward_error)


def write_judgements(
    path: Path, prompts: list[Prompt], policies: dict[str, Judgements], won: Winners | None = None
) -> None:
    """A line a prompt: prompt, category, each policy's greedy reply and its scores, the sampled replies and, where no
    score decides, the verdict of each judgment on each pair of replies, from the later policy's side."""
    lines = []
    for index, prompt in enumerate(prompts):
        line: dict[str, Any] = {"prompt": prompt.messages[-1].content, "category": prompt.category}
        for name, judged in policies.items():
            line |= {f"{name}_{key}": value for key, value in judged["greedy"][index][0].row().items()}
        if all("sampled" in judged for judged in policies.values()):
            sampled = {name: judged["sampled"][index] for name, judged in policies.items()}
            line["sampled"] = {name: [one.row() for one in replies] for name, replies in sampled.items()}
        if won is not None:
            said = {way: prompts_won[index] for way, prompts_won in won.items()}
            line["verdicts"] = {way: [[VERDICTS[one] for one in pair] for pair in row] for way, row in said.items()}
        lines.append(line)
    common.write_lines(path, lines)
