"""The judges that are no reward: who says which of two replies to a prompt is the better one.

`judge` of a stage is one of these, or any part of a reward, whose higher score wins (`align.recipe.reward_section`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from align.recipe.section import LocalPath, Positive, Section, Url
from align.recipe.user_code import spelling_problem
from align.runtime.address import url_problem

OWN = frozenset({"model", "messages", "stream", "n"})  # fields of a request


class ComparisonJudgeSection(Section):
    """A Python function `(prompts, first, second, **columns)` that sees both replies and says of each pair "first",
    "second", "tie", None, or a number, above 0 where the first one is better."""

    kind: Literal["comparison"]
    """A Python function that sees both replies."""
    function: str
    """`package.module:function` or `path/to/file.py:function`, the path from the working folder."""

    def rules(self) -> list[tuple[str, str]]:
        problem = spelling_problem(self.function)
        return [("function", problem)] if problem else []


class RankingsJudgeSection(Section):
    """People: replies that annotators ranked, looked up by prompt and text. What nobody ranked has no verdict: they
    judge a run whose replies were ranked before, and that says the same again (its `eval.jsonl` has them)."""

    kind: Literal["rankings"]
    """Replies that annotators ranked."""
    path: LocalPath
    """CSV, JSON, JSON Lines or Parquet, the path from the working folder; [its shapes](formats.md)."""


class LanguageModelSection(Section):
    """A language model behind an OpenAI-compatible endpoint, whatever it is asked."""

    url: Url = Field(repr=False)
    """Where it listens, up to `/v1` or the whole address. What its query holds is written nowhere (`***` in a
    run's recipe.yaml) and may change when a run goes on."""
    model: str = Field(min_length=1)
    """What the endpoint calls the model."""
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the key, never the key itself."""
    parameters: dict[str, Any] = Field({})
    """More fields of a request (`max_tokens: 4096`); one that is null is left out of it."""
    at_once: Positive = 8
    """Requests at the same time, of each process."""
    timeout: float = Field(120.0, gt=0)
    """Seconds until a request is given up."""
    attempts: Positive = 6
    """Requests at most, the first included."""
    backoff: float = Field(1.0, ge=0)
    """Seconds before the second attempt; doubled for each further one."""
    insecure: bool = False
    """Allow plain http:// to other machines."""

    def rules(self) -> list[tuple[str, str]]:
        problem = url_problem(self.url, self.insecure)
        taken = sorted(OWN & self.parameters.keys())
        broken = [(f"parameters.{name}", "is not to be set; leave it out") for name in taken]
        return ([("url", problem)] if problem else []) + broken


class LLMJudgeSection(LanguageModelSection):
    """A language model behind an OpenAI-compatible endpoint, asked about each pair in both orders; where they disagree
    it is a tie. Its answers are kept in the stage's folder, and nothing is asked twice."""

    kind: Literal["llm"]
    """A language model behind an endpoint."""
    rubric: LocalPath | None = None
    """Text file, from the working folder, with what makes a reply better; by default ours."""
