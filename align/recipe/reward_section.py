"""The parts that a recipe's reward is made of: `reward` of a stage is one of them, or a list with a weight each.

`kind` says what a part is; each kind has only its own keys. A part that names a model, a function or an endpoint is
checked for what can be known without torch and without running anything of the user's.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from align.recipe.judge_section import (
    ComparisonJudgeSection,
    LanguageModelSection,
    LLMJudgeSection,
    RankingsJudgeSection,
)
from align.recipe.section import Count, Listed, LocalPath, Positive, Section, Url, as_tuple
from align.recipe.user_code import spelling_problem
from align.runtime.address import url_problem
from align.runtime.packages import is_installed, missing_package
from align.runtime.paths import typed_path
from align.runtime.secrets import hidden_problem
from align.runtime.terminal import shortened

Column = Annotated[str, Field(min_length=1)]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
OnRewardError = Literal["stop", "retry", "mask"]  # of `reward.failures`


class RewardPart(Section):
    """What every part has.

    A score enters the sum as `weight * clamp((score - shift) / scale, -clip, clip)`. A list of several parts needs the
    weight of each.
    """

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$")
    """What its scores are logged under; by default the kind."""
    weight: float | None = None
    """Factor in the sum; needed in a list of several parts."""
    shift: float = 0.0
    """Taken off the score before it is divided."""
    scale: float = Field(1.0, gt=0)
    """What the score is divided by."""
    clip: float | None = Field(None, gt=0)
    """Bound of the score, both ways, after that."""

    @property
    def label(self) -> str:
        """The name, or the kind."""
        return self.name or self.kind


class ModelPart(RewardPart):
    """A reward model."""

    kind: Literal["model"]
    """A reward model."""
    model_from: LocalPath | None = None
    """A stage (rm, pmp), a folder or a hub id; by default rm, else pmp."""
    batch_size: Positive | None = None
    """Replies scored at once."""
    share_prompts: bool | None = None
    """Compute the prompt of several replies once: wherever the model allows it, never, or by default where it needs no
    padding and no mask, which is always faster (sdpa attention)."""


class FunctionPart(RewardPart):
    """A Python function `(prompts, completions, **columns) -> one float a reply`."""

    kind: Literal["function"]
    """A Python function."""
    function: str
    """`package.module:function` or `path/to/file.py:function`, the path from the working folder."""

    def rules(self) -> list[tuple[str, str]]:
        problem = spelling_problem(self.function)
        return [("function", problem)] if problem else []


class EndpointPart(RewardPart):
    """An HTTP endpoint."""

    kind: Literal["http"]
    """An HTTP endpoint."""
    url: Url = Field(repr=False)
    """Where it listens: in our own shape, or in vLLM's where the path is `/pooling` or `/classify`; without a path the
    server is asked which. What its query holds is written nowhere (`***` in a run's recipe.yaml) and may change when a
    run goes on."""
    batch_size: Positive = 64
    """Replies of one request."""
    timeout: float = Field(60.0, gt=0)
    """Seconds until a request is given up."""
    attempts: Positive = 6
    """Requests at most, the first included."""
    backoff: float = Field(1.0, ge=0)
    """Seconds before the second attempt; doubled for each further one."""
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key, never the key itself."""
    insecure: bool = False
    """Allow plain http:// to other machines."""

    def rules(self) -> list[tuple[str, str]]:
        problem = url_problem(self.url, self.insecure)
        return [("url", problem)] if problem else []


class ReferencePart(RewardPart):
    """A rule that compares the reply with `column` of the prompt; `missing` is the score where a prompt has none."""

    column: Column = "reference"
    """Column of the prompt that holds the reference."""
    missing: float | None = None
    """Score where a prompt has none; by default an error."""


class ExactMatchPart(ReferencePart):
    """1 where reply and reference are equal after normalisation, else 0."""

    kind: Literal["exact_match"]
    """Equality after normalisation."""
    normalize: Annotated[
        tuple[Literal["strip", "spaces", "case", "punctuation", "articles", "unicode"], ...], Listed
    ] = ("strip",)
    """What is taken off both texts first."""


class MathPart(ReferencePart):
    """1 where the reply's answer equals the reference as mathematics (`math-verify`), else 0."""

    kind: Literal["math"]
    """Equality as mathematics."""


class GSM8KPart(ReferencePart):
    """1 where the final number ("#### 72") is the reference's, else 0; `flexible` also takes the last number."""

    kind: Literal["gsm8k"]
    """The final number, `#### 72`."""
    extract: Literal["strict", "flexible"] = "strict"
    """The number after `####` alone, or else the last number of the reply."""


class TestsPart(RewardPart):
    """1 where the reply's code passes the unit tests of the prompt's row in a sandbox, else 0."""

    kind: Literal["tests"]
    """Unit tests, run in a sandbox."""
    partial: bool = False
    """The share of tests that pass; else 1 for all of them and 0."""
    missing: float | None = None
    """Score where a prompt has no tests; by default an error."""
    isolation: Literal["required", "best"] = "required"
    """Where the kernel gives no namespaces: an error, or (`best`) run the code with the walls that there are."""
    seconds: Positive = 2
    """Seconds of CPU that one test may take."""
    reply_seconds: Positive = 60
    """Seconds of wall clock that a reply may take with all of its tests."""
    total_seconds: float = Field(3600.0, gt=0)
    """Seconds of wall clock for all replies of a call; more is a failure of the reward, never a score."""
    memory_mib: Positive = 512
    """Memory of each process; all of them together have twice as much."""
    processes: Positive = 8
    """Processes and threads that a reply's code may have at once."""
    workers: Positive | None = None
    """Replies that are tested at once; by default one for each core of this rank."""


class RegexPart(RewardPart):
    """1 where the pattern matches, else 0."""

    kind: Literal["regex"]
    """A regular expression."""
    pattern: str
    """Python's `re`."""
    match: Literal["search", "full"] = "search"
    """Anywhere in the reply, or the whole of it."""
    ignore_case: bool = False
    """Whether upper and lower case are the same."""

    def rules(self) -> list[tuple[str, str]]:
        try:
            re.compile(self.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            return [("pattern", f"'{shortened(self.pattern)}' is no regular expression ({error})")]
        return []


class LengthPart(RewardPart):
    """1 where the reply's length lies between `minimum` and `maximum`, both included, else 0."""

    kind: Literal["length"]
    """Bounds of length."""
    minimum: Count = 0
    """Least length, included."""
    maximum: Count | None = None
    """Greatest length, included."""
    unit: Literal["tokens", "characters"] = "tokens"
    """What is counted."""

    def rules(self) -> list[tuple[str, str]]:
        if self.maximum is not None and self.minimum > self.maximum:
            return [("minimum", f"{self.minimum} is more than maximum ({self.maximum})")]
        if self.minimum == 0 and self.maximum is None:
            return [("maximum", "is needed, or a minimum: without both every length is right")]
        return []


class FormatPart(RewardPart):
    """1 where the reply is `<tag>…</tag>` for each tag in order, and then text or nothing, else 0."""

    kind: Literal["format"]
    """Tagged parts in order."""
    tags: Annotated[tuple[Tag, ...], Listed] = Field(("think",), min_length=1)
    """Tags that the reply opens and closes, in order."""
    then: Literal["text", "nothing"] = "text"
    """What may stand behind the last one."""

    def rules(self) -> list[tuple[str, str]]:
        return [] if len(set(self.tags)) == len(self.tags) else [("tags", "names a tag twice; name each once")]


Plain = (
    ModelPart
    | FunctionPart
    | EndpointPart
    | ExactMatchPart
    | MathPart
    | GSM8KPart
    | TestsPart
    | RegexPart
    | LengthPart
    | FormatPart
)
PlainPart = Annotated[Plain, Field(discriminator="kind")]


class GatePart(RewardPart):
    """Llama 2's gate: `safety` where the prompt's `column` is one of `unsafe` or sigmoid(safety) is under `threshold`,
    else `helpfulness`. `unit`: what both give."""

    kind: Literal["gate"]
    """Llama 2's gate of two parts."""
    helpfulness: PlainPart
    """Part that judges the other replies."""
    safety: PlainPart
    """Part that judges where it matters."""
    threshold: float = Field(0.15, gt=0, lt=1)
    """`safety` judges where sigmoid(safety) is below it."""
    column: Column = "category"
    """Column of the prompt that says what it is about."""
    unsafe: Annotated[tuple[str, ...], Listed] = ("unsafe",)
    """Values of the column for which `safety` always judges."""
    unit: Literal["logit", "probability"] = "logit"
    """What the two parts give."""

    def rules(self) -> list[tuple[str, str]]:
        broken = []
        for key in ("helpfulness", "safety"):
            for name in ("weight", "shift", "scale", "clip"):
                if getattr(getattr(self, key), name) != RewardPart.model_fields[name].default:
                    broken.append((f"{key}.{name}", "has no place in a gate, which hands scores through as they are"))
        return broken

    def inner_name(self, key: str) -> str:
        """What `helpfulness` and `safety` are logged as: the name of the part, or the key."""
        return getattr(self, key).name or key


AnyPart = Annotated[Plain | GatePart, Field(discriminator="kind")]


def as_parts(value: Any) -> Any:
    """One part stands for a list of one."""
    return (value,) if isinstance(value, dict) else as_tuple(value)


Parts = Annotated[tuple[AnyPart, ...], BeforeValidator(as_parts)]
JudgeOnly = ComparisonJudgeSection | RankingsJudgeSection | LLMJudgeSection
AnyJudge = Annotated[Plain | GatePart | JudgeOnly, Field(discriminator="kind")]


class Rewarded(Section):
    """What judges the replies of a stage."""

    reward: Parts = ()
    """One part or a list of weighted parts; without it the model of `reward_from`."""
    reward_from: LocalPath | None = None
    """Reward model: a stage, a folder or a hub id; by default rm, else pmp."""
    on_reward_error: OnRewardError = "stop"
    """A reward that fails stops the stage, is asked again (three calls in all), or (`mask`) the replies it fails on
    teach nothing, up to a quarter of those it is asked for at once."""
    judge: AnyJudge | None = None
    """Who decides between the policies before and after, on the held-out prompts: a part as of `reward` (the higher
    score wins), a function that sees both replies, people's rankings, or a language model. Nothing is trained on it,
    stopped by it or chosen by it, and a stage that is finished is not judged again (`align eval` does that)."""

    def judges(self) -> Iterator[tuple[str, RewardPart | JudgeOnly]]:
        """Whatever judges in the section, in parts that are no gates, with its key below the section."""
        yield from plain_parts(self.reward)
        if isinstance(self.judge, JudgeOnly):
            yield "judge", self.judge
        else:
            yield from self.judge_parts()

    def judge_parts(self) -> Iterator[tuple[str, RewardPart]]:
        """The parts of a `judge` that is a reward."""
        if isinstance(self.judge, RewardPart):
            yield from plain_part("judge", self.judge)

    def judge_rules(self) -> list[tuple[str, str]]:
        """Broken rules of `judge`."""
        broken = list(apart_rules(self.judge_parts()))
        if self.judge is not None and not self.eval_data:  # which every stage of this kind has
            broken.append(("judge", "compares replies to held-out prompts alone: name some in eval_data"))
        return broken

    def reward_rules(self) -> list[tuple[str, str]]:
        """Broken rules of `reward`, `reward_from` and `judge`."""
        broken = [*list_rules(self.reward), *self.judge_rules()]
        if self.reward and self.reward_from is not None:
            sentence = "names the reward a second time; write it as a part of reward (kind: model, model_from: …)"
            broken.append(("reward_from", sentence))
        return broken


def list_rules(parts: Sequence[RewardPart], key: str = "reward") -> list[tuple[str, str]]:
    """Broken rules of `reward` (or the `key` that holds `parts`) as a list: (key, sentence)."""
    broken, seen = [], set()
    for index, part in enumerate(parts):
        if len(parts) > 1 and part.weight is None:
            sentence = f"is required where {key} has several parts; give '{part.label}' the factor of its score"
            broken.append((f"{key}.{index}.weight", sentence))
        if part.label in seen:
            sentence = f"'{part.label}' names two parts; give each a name of its own, its scores are logged under it"
            broken.append((f"{key}.{index}.name", sentence))
        seen.add(part.label)
        if isinstance(part, GatePart) and part.inner_name("helpfulness") == part.inner_name("safety"):
            broken.append((f"{key}.{index}.safety.name", "is the name of helpfulness too; give each its own"))
    return broken


def apart_rules(parts: Iterable[tuple[str, RewardPart]]) -> Iterator[tuple[str, str]]:
    """Broken rules of parts that only look on: a model has a name of its own."""
    for key, part in parts:
        if isinstance(part, ModelPart) and part.model_from is None:
            yield f"{key}.model_from", "is required here: name another model than the policy trains on"


def plain_parts(parts: Sequence[RewardPart], key: str = "reward") -> Iterator[tuple[str, RewardPart]]:
    """Every part that is not a gate, with its key below the section (`reward.0`, `reward.1.safety`), in order; `key` is
    the one that holds `parts`."""
    for index, part in enumerate(parts):
        yield from plain_part(f"{key}.{index}", part)


def plain_part(key: str, part: RewardPart) -> Iterator[tuple[str, RewardPart]]:
    """The part at `key`, or the two of a gate."""
    if isinstance(part, GatePart):
        yield f"{key}.helpfulness", part.helpfulness
        yield f"{key}.safety", part.safety
    else:
        yield key, part


def part_problems(key: str, part: RewardPart | JudgeOnly | LanguageModelSection) -> list[str]:
    """What would keep an endpoint, a rule or a file from being used here and now; functions:
    `align.recipe.user_code`."""
    if part.rules():  # told already, by the section itself
        return []
    if isinstance(part, EndpointPart | LanguageModelSection):
        if problem := hidden_problem(part.url):
            return [f"{key}.url: {problem}"]
        if part.api_key_env and not os.environ.get(part.api_key_env, "").strip():
            return [f"{key}.api_key_env: the environment variable {part.api_key_env} is not set; set it to the key"]
    if isinstance(part, MathPart) and not is_installed("math_verify"):
        return [missing_package(f"{key}.kind: 'math'", "math_verify")]
    if isinstance(part, TestsPart) and part.isolation == "required" and sys.platform != "linux":
        return [f"{key}.isolation: there are no namespaces on {sys.platform}; say best to run code with less around it"]
    files = {name: getattr(part, name) for name in ("path", "rubric") if getattr(part, name, None) is not None}
    return [f"{key}.{name}: no such file {file}" for name, file in files.items() if not typed_path(file).is_file()]
