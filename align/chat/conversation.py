"""A conversation with one model or with two side by side: one list of questions, and each model's own replies."""

from __future__ import annotations

from dataclasses import dataclass, field

from align.runtime.errors import AlignError
from data_formats.chatml import with_reasoning
from data_formats.records import Demonstration, Message


class ChatError(AlignError, ValueError):
    """A question that a model cannot answer, or a command that cannot be followed."""


@dataclass(frozen=True, slots=True)
class Said:
    """A reply.

    Attributes:
        text: without control tokens.
        ended: why it ended: "stop" by itself, "length" at the limit of tokens, "stopped" by the user.
        score: what the reward says of it; None without a reward.
    """

    text: str
    ended: str = "stop"
    score: float | None = None


@dataclass(slots=True)
class Round:
    """A question and each model's reply to it, in the models' order."""

    question: str
    replies: list[Said] = field(default_factory=list)


class Conversation:
    """What was said so far; every model sees the questions and its own replies alone.

    Attributes:
        system: the system turn's text, empty for none.
    """

    def __init__(self, system: str = ""):
        self.system = system
        self.exchanges: list[Round] = []

    def ask(self, question: str) -> Round:
        """A new question, not yet answered."""
        self.exchanges.append(Round(question))
        return self.exchanges[-1]

    def undo(self) -> Round | None:
        """Takes the last exchange away; None where there is none."""
        return self.exchanges.pop() if self.exchanges else None

    def turns(self, model: int, *, alone: bool = False) -> tuple[Message, ...]:
        """The turns up to the last question, as the model of this number sees them.

        Args:
            alone: the last question alone, for a model without turns.
        """
        *before, last = self.exchanges
        if alone:
            return (Message("user", last.question),)
        return (*self._system(), *_exchanges(before, model), Message("user", last.question))

    def record(self, model: int) -> Demonstration:
        """The whole conversation with one model."""
        return Demonstration((*self._system(), *_exchanges(self.exchanges, model)))

    def _system(self) -> tuple[Message, ...]:
        return (Message("system", self.system),) if self.system else ()


def _exchanges(exchanges: list[Round], model: int) -> list[Message]:
    pairs = ((Message("user", one.question), Message("assistant", one.replies[model].text)) for one in exchanges)
    return list(with_reasoning(turn for pair in pairs for turn in pair))
