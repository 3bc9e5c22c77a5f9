"""The four records that every reader produces and every stage consumes."""

from __future__ import annotations

from dataclasses import dataclass, field

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: `role` is one of `ROLES`, `content` the text without any control token."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation to imitate; its assistant turns get loss (SFT)."""

    messages: tuple[Message, ...]
    category: str = ""
    source: str = ""

    def last_exchange(self) -> tuple[tuple[Message, ...], str] | None:
        """The turns before the last assistant turn, and that turn's text; None where nothing stands before one."""
        for at in range(len(self.messages) - 1, 0, -1):
            if self.messages[at].role == "assistant":
                return self.messages[:at], self.messages[at].content
        return None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two replies to one prompt, `chosen` the better (PMP, reward model).

    Attributes:
        prompt: the turns before the reply, the last one a user turn.
        grade: strength of the preference in the annotators' own unit, None when the source has none.
        tags: facts about the pair kept for evaluation, e.g. ("correctness",).
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    grade: float | None = None
    category: str = ""
    source: str = ""
    tags: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Prompt:
    """A query to answer (PPO, evaluation); `reference` is a known good answer where the source has one."""

    messages: tuple[Message, ...]
    category: str = ""
    reference: str | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text for (continued) pretraining and the ptx loss."""

    text: str
    source: str = ""


Record = Demonstration | Comparison | Prompt | Document
