"""From `reward` (or `reward_from`) of a ppo or rejection section to what judges replies, in training and evaluation;
and from `gold_reward` and a `judge` that is a reward to what only looks on (other judges: `align.stages.judges`).

What a part gives is documented where its class is: `reward.sources`, `reward.rules`, `reward.maths`,
`reward.unit_tests`, `reward.endpoint`, `reward.gate`, and the sum of several in `reward.combined`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from align.recipe import Recipe
from align.recipe.lineage import Origin, origins_of
from align.recipe.reward_section import (
    EndpointPart,
    ExactMatchPart,
    FormatPart,
    FunctionPart,
    GatePart,
    GSM8KPart,
    LengthPart,
    MathPart,
    ModelPart,
    RegexPart,
    RewardPart,
    TestsPart,
)
from align.recipe.rollout_section import RolloutSection
from align.stages import common
from align.stages.user_code import UserCodeError, load_named
from reward.protocol import Reward, RewardError

DEFAULT_SCALE = {"weight": None, "shift": 0.0, "scale": 1.0, "clip": None}


def build_reward(
    recipe: Recipe,
    tokenizer: Any,
    *,
    stage: str = "ppo",
    key: str = "reward",
    name: str | None = None,
    device: Any = None,
    ready: Mapping[str, Any] | None = None,
) -> Reward:
    """The reward that the section of `stage`, ppo or rejection, describes, or the judge of `rounds`.

    One part without weight, shift, scale and clip is that part itself; everything else is a `CombinedReward`.

    Args:
        tokenizer: the policy's, for lengths in tokens.
        stage: whose section it is.
        key: which of the section's rewards, `reward`, `gold_reward` or `judge`.
        name: what the whole is called; default `reward_model` for `reward_from`, else the part's name or `reward`.
        device: where models are put, default: where they are loaded.
        ready: reward models that are loaded already, by path; with the policy's tokenizer.

    Raises:
        MissingFileError: a model, file or function that does not exist.
        RewardError: a function that cannot be loaded, a library that is not installed.
    """
    from reward.combined import CombinedReward, Part

    parts = parts_of(recipe, stage, key)
    make = _Builder(recipe, tokenizer, stage, key, device, ready or {})
    if not parts:
        return make.model(make.origins["reward"], name or "reward_model", None)
    first, alone = next(iter(parts.items()))
    if len(parts) == 1 and all(getattr(alone, option) == plain for option, plain in DEFAULT_SCALE.items()):
        return make.part(first, alone, name or alone.label)
    weighted = [
        Part(
            make.part(at, part, part.label),
            1.0 if part.weight is None else part.weight,
            part.shift,
            part.scale,
            part.clip,
        )
        for at, part in parts.items()
    ]
    return CombinedReward(weighted, name or key)


def parts_of(recipe: Recipe, stage: str, key: str) -> dict[str, RewardPart]:
    """The parts of a reward of the section, gates whole, by where they stand below it (`reward.0`, `judge`)."""
    found = getattr(getattr(recipe, stage), key)
    return {key: found} if isinstance(found, RewardPart) else {f"{key}.{at}": part for at, part in enumerate(found)}


class _Builder:
    """Makes rewards of parts; a model that two parts name is loaded for each."""

    def __init__(self, recipe: Recipe, tokenizer: Any, stage: str, key: str, device: Any, ready: Mapping[str, Any]):
        self.recipe, self.tokenizer, self.stage, self.device, self.ready = recipe, tokenizer, stage, device, ready
        self.origins = origins_of(recipe, stage, key)
        self.batch_size = getattr(getattr(recipe, stage), "rollout", RolloutSection()).batch_size

    def model(self, origin: Origin, name: str, batch_size: int | None, share_prompts: bool | None = None) -> Reward:
        """The reward model of an origin."""
        from align.models.load import load_options
        from reward.sources import ModelReward, load_reward

        path = common.origin_path(self.recipe, origin, stage=self.stage)
        batch_size = batch_size or self.batch_size
        if path in self.ready:
            model = self.ready[path]
            if self.device is not None:
                model.to(self.device)
            return ModelReward(model, self.tokenizer, batch_size, name, share_prompts=share_prompts)
        return load_reward(
            path,
            batch_size=batch_size,
            name=name,
            device=self.device,
            share_prompts=share_prompts,
            **load_options(path, self.recipe.model),
        )

    def part(self, key: str, part: RewardPart, name: str) -> Reward:
        """The reward of one part; `key` is where it stands below the section."""
        from reward.endpoint import EndpointReward
        from reward.gate import SafetyGate
        from reward.sources import FunctionReward

        match part:
            case ModelPart():
                return self.model(self.origins[key], name, part.batch_size, part.share_prompts)
            case FunctionPart():
                return FunctionReward(load_function(part.function), name)
            case EndpointPart():
                return EndpointReward(
                    part.url,
                    **part.model_dump(include={"batch_size", "timeout", "attempts", "backoff"}),
                    **part.model_dump(include={"api_key_env", "insecure"}),
                    name=name,
                )
            case GatePart():
                inner = {
                    side: self.part(f"{key}.{side}", getattr(part, side), part.inner_name(side))
                    for side in ("helpfulness", "safety")
                }
                options = part.model_dump(include={"threshold", "column", "unsafe", "unit"})
                return SafetyGate(**inner, **options, name=name)
        return self.rule(part, name)

    def rule(self, part: RewardPart, name: str) -> Reward:
        """The reward of a part that is a rule."""
        from reward import maths, rules, unit_tests

        known = part.model_dump(include={"column", "missing"})
        match part:
            case ExactMatchPart():
                return rules.ExactMatch(part.normalize, name=name, **known)
            case MathPart():
                return maths.MathEquality(name=name, **known)
            case GSM8KPart():
                return maths.FinalAnswer(part.extract, name=name, **known)
            case TestsPart():
                return unit_tests.UnitTests(
                    partial=part.partial, missing=part.missing, budget=budget_of(part), name=name
                )
            case RegexPart():
                return rules.RegexMatch(part.pattern, match=part.match, ignore_case=part.ignore_case, name=name)
            case LengthPart():
                count = rules.token_counter(self.tokenizer) if part.unit == "tokens" else None
                return rules.LengthWindow(part.minimum, part.maximum, count=count, name=name)
            case FormatPart():
                return rules.TagFormat(part.tags, then=part.then, name=name)
        raise AssertionError(f"no reward is made of {type(part).__name__}")


def budget_of(part: TestsPart) -> Any:
    """What the sandboxes of a part may use."""
    from reward.sandbox.start import Budget

    names = {"isolation", "seconds", "reply_seconds", "total_seconds", "memory_mib", "processes", "workers"}
    return Budget(**part.model_dump(include=names))


def load_function(spec: str, what: str = "reward function") -> Callable[..., Any]:
    """The function that `package.module:name` or `path/to/file.py:name` names. Runs that module's code.

    Args:
        what: it is, the subject of what is said of one that cannot be had.

    Raises:
        MissingFileError: no such file.
        RewardError: the module fails while it is imported, or has no such function.
    """
    try:
        function = load_named(what, spec)
    except UserCodeError as error:
        raise RewardError(str(error)) from error
    if not callable(function):
        place, _, name = spec.rpartition(":")
        raise RewardError(f"{what} {spec}: {place} has no function '{name}'")
    return function
