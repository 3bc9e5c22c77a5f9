"""What a reward is: prompts and replies in, one float each out.

A reward that is made of several (`reward.combined`, `reward.gate`) also tells what each of them said: `judge` hands
that on, so that training and evaluation log the parts apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from align.runtime.errors import AlignError
from data_formats.chat_format import chat_format
from data_formats.records import Message, Prompt


class RewardError(AlignError, RuntimeError):
    """A reward that failed, or gave something that is not one finite float a reply."""


class RewardUnavailableError(RewardError):
    """A reward that is not to be had at all, whatever the reply: no connection, a refused key, another number of scores
    than there are replies."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One reply to be judged.

    Attributes:
        prompt: the conversation before the reply.
        completion: the reply as text, without control tokens.
        prompt_ids, completion_ids: the same as the policy's token ids (the end token included when it was drawn), for
            rewards that share the policy's tokenizer; others re-encode the text.
        finished: whether the policy ended the reply itself.
        columns: further fields of the prompt's record, see `prompt_columns`.
    """

    prompt: tuple[Message, ...]
    completion: str
    prompt_ids: tuple[int, ...] | None = None
    completion_ids: tuple[int, ...] | None = None
    finished: bool = True
    columns: dict[str, Any] | None = None


@runtime_checkable
class Reward(Protocol):
    """Anything that scores replies: a reward model, a rule, a remote service."""

    name: str

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One finite float a sample, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reward said of N replies.

    Attributes:
        scores: one float a reply, in order.
        parts: by name, what each part of a composed reward said, in the part's own unit; empty for a plain reward.
    """

    scores: list[float]
    parts: dict[str, list[float]] = field(default_factory=dict)


def judge(reward: Reward, samples: Sequence[Sample]) -> Verdict:
    """The reward's scores, with those of its parts where it is composed of some (it then has a `verdict` of its own).

    Raises:
        RewardError: the reward failed, or gave something that is not one finite float a reply.
    """
    composed = getattr(reward, "verdict", None)
    return composed(samples) if composed is not None else Verdict(reward.score(samples))


def prompt_columns(prompt: Prompt) -> dict[str, Any]:
    """The fields of a prompt that rewards get beside its turns: `category`, `reference`, `source`, and the further
    columns of its row."""
    own = {"category": prompt.category, "reference": prompt.reference, "source": prompt.source}
    return {**prompt.columns, **own}


def text_alone(samples: Sequence[Sample]) -> list[Sample]:
    """The samples without token ids, for rewards that do not share the policy's tokenizer."""
    return [replace(sample, prompt_ids=None, completion_ids=None) for sample in samples]


def same_tokens(reward: Any, tokenizer: Any) -> bool:
    """Whether a reward may be given the policy's token ids: it has no tokenizer of its own, or an equal one that speaks
    alike."""
    own = getattr(reward, "tokenizer", None)
    if own is None or own is tokenizer:
        return True
    return own.get_vocab() == tokenizer.get_vocab() and chat_format(own).speaks_like(chat_format(tokenizer))


def require_reward(value: Any, argument: str) -> Reward:
    """`value`, which must be a reward: something with a `name` and `score(samples)`.

    Raises:
        TypeError: it is something else; names `argument` and what to do.
    """
    kind, scores = type(value), callable(getattr(value, "score", None))
    if isinstance(value, type):
        problem = f"not the class {value.__name__}; give an instance of it"
    elif scores and isinstance(getattr(value, "name", None), str):
        return value
    elif any(base.__module__.startswith("torch.nn") for base in kind.__mro__):
        problem = f"not the module {kind.__name__}; wrap it: reward.sources.ModelReward(model, tokenizer)"
    elif isinstance(value, str) or hasattr(value, "__fspath__"):
        problem = f"not the text {str(value)!r}; load it: reward.sources.load_reward(path)"
    elif scores:
        problem = f"and this {kind.__name__} has no name; give it one (a text), for logs and errors"
    elif callable(value):
        problem = "not a function; wrap it: align.FunctionReward(function)"
    else:
        problem = f"not a {kind.__name__}; give an object with `name` and `score(samples)`, or a function"
    raise TypeError(f"{argument}: must be a reward, {problem}")
