"""What a reward is: prompts and replies in, one float each out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from data_formats.errors import AlignError
from data_formats.records import Message


class RewardError(AlignError, RuntimeError):
    """A reward that failed, or gave something that is not one finite float a reply."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One reply to be judged.

    Attributes:
        prompt: the conversation before the reply.
        completion: the reply as text, without control tokens.
        prompt_ids, completion_ids: the same as the policy's token ids (the end token included when it was drawn), for
            rewards that share the policy's tokenizer; others re-encode the text.
        finished: whether the policy ended the reply itself.
        columns: further fields of the prompt's record (category, reference, …).
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


def same_tokens(reward: Any, tokenizer: Any) -> bool:
    """Whether a reward may be given the policy's token ids: it has no tokenizer of its own, or an equal one."""
    own = getattr(reward, "tokenizer", None)
    return own is None or own is tokenizer or own.get_vocab() == tokenizer.get_vocab()
