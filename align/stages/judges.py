"""Who decides between two policies on the held-out prompts, and in which words that is said.

The recipe's `judge`; else the gold score of the embedded world, which nothing before the stage's end has seen; else
ppo's `gold_reward`; without any of these only the reward that the stage itself used is at hand, or, after dpo, one that
learnt from comparisons too, and the words say so.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from align.recipe import Recipe
from align.recipe.judge_section import ComparisonJudgeSection, LLMJudgeSection, RankingsJudgeSection
from align.recipe.lineage import Origin, origins_of
from align.recipe.registry import REWARD_STAGES
from align.recipe.reward_section import EndpointPart, FunctionPart, GatePart, ModelPart, RewardPart
from align.runtime.secrets import shown_url
from align.stages import common
from align.stages.rewards import build_reward, load_function, parts_of
from reward.judges.functions import FunctionJudge
from reward.judges.llm import LLMJudge
from reward.judges.protocol import Judge
from reward.judges.rankings import RankingsJudge
from reward.judges.rewards import RewardJudge
from reward.protocol import Reward

NAME, SCORE = "judge", "judge_reward"  # of the one that a recipe names, and of its scores where it is a reward
USED = {"ppo": "which ppo was trained on itself", "rejection": "by which rejection itself chose what to train on"}


def recipe_judge(recipe: Recipe, tokenizer: Any, *, stage: str, out_dir: Path, device: Any = None) -> Judge | None:
    """The `judge` of the section of `stage`, ppo or rejection, or of `rounds`; None where it names none.

    Args:
        tokenizer: the policy's, for lengths in tokens.
        out_dir: the stage's folder, where the answers of a language model are kept.
        device: where models are put, default: where they are loaded.

    Raises:
        AlignError: a model, file or function that does not exist or cannot be used.
    """
    match getattr(recipe, stage).judge:
        case None:
            return None
        case ComparisonJudgeSection(function=spec):
            function = load_function(spec, f"{stage}.judge.function")
            return FunctionJudge(function, name=NAME, described=_function(spec))
        case RankingsJudgeSection(path=path):
            return RankingsJudge(path, name=NAME)
        case LLMJudgeSection() as section:
            options = section.model_dump(exclude={"kind", "url"})  # which would be written without its secrets
            answers = out_dir / common.JUDGED / f"{common.place()[0]}.jsonl"
            return LLMJudge(section.url, **options, cache=answers, name=NAME)
    reward = build_reward(recipe, tokenizer, stage=stage, key="judge", name=SCORE, device=device)
    return RewardJudge(reward, described=in_words(recipe, stage, "judge"))


def judge_of(recipe: Recipe, stage: str, reward: Reward) -> RewardJudge:
    """A reward of the recipe or of the embedded world as the one that decides, for want of a named judge."""
    if reward.name == "gold":
        words = "the gold score of the embedded world, which training has not seen"
    elif reward.name == "gold_reward":
        words = _gold_reward(recipe)
    elif reward.name in REWARD_STAGES:  # where dpo has been, which used none
        words = f"{_model(Origin('stage', reward.name))}, which learnt from comparisons as {stage} did"
    else:
        words = f"{in_words(recipe, stage, 'reward')}, {USED[stage]}"
    return RewardJudge(reward, described=words)


def looks_judged_by(recipe: Recipe, judge: Judge | None) -> dict[str, str]:
    """Who decides in ppo's looks at held-out prompts, where the gold score of the embedded world is not to be had, for
    the summary; nothing where nobody does."""
    if judge is None and not recipe.ppo.gold_reward:
        return {}
    return {"looks_judged_by": _gold_reward(recipe) if judge is None else judge.described}


def _gold_reward(recipe: Recipe) -> str:
    return f"{in_words(recipe, 'ppo', 'gold_reward')} (the gold reward), which nothing was trained on"


def in_words(recipe: Recipe, stage: str, key: str) -> str:
    """What the section's `reward`, `gold_reward` or `judge` is: "the reward model of the stage rm"."""
    origins = origins_of(recipe, stage, key)
    parts = parts_of(recipe, stage, key)
    if not parts:
        return _model(origins["reward"])
    said = [_part(at, part, origins) for at, part in parts.items()]
    return said[0] if len(said) == 1 else f"the sum of {', '.join(said[:-1])} and {said[-1]}"


def _part(key: str, part: RewardPart, origins: dict[str, Origin]) -> str:
    match part:
        case ModelPart():
            return _model(origins[key])
        case FunctionPart():
            return _function(part.function)
        case EndpointPart():
            return f"the reward at {shown_url(part.url)}"
        case GatePart():
            inner = (_part(f"{key}.{side}", getattr(part, side), origins) for side in ("helpfulness", "safety"))
            return "the gate of {} and {}".format(*inner)
    return f"the rule {part.label}"


def _model(origin: Origin) -> str:
    return f"the reward model {'of the stage ' if origin.kind == 'stage' else ''}{model_name(origin.value)}"


def _function(spec: str) -> str:
    place, _, name = spec.rpartition(":")
    return f"the function {name} of {PurePath(place).name}"


def model_name(path: str | Path) -> str:
    """A model's name, nothing of the machine: the stage of `runs/a/sft/model`, the last part of another absolute
    path, else what was written."""
    place = PurePath(path)
    if place.name == "model" and place.parent.name:
        return place.parent.name
    return place.name if place.is_absolute() or str(path).startswith("~") else str(path)
