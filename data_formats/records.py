"""The records that every reader produces and every stage consumes.

`part`, which all have: the part of a mixture that the record belongs to, "" where there is none. It stays with the
record through cleaning and choosing, and does not count in comparing two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant turn makes; `arguments` is the JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: system, user, assistant or tool; `tool` is what a called tool answered (an observation).
        content: the text without any control token.
        reasoning: what an assistant thought before `content`, without tags.
        tool_calls: the calls that follow `content`, of an assistant.
        loss: False for an assistant turn of a demonstration that is read but not trained on.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    loss: bool = True


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation to imitate; its assistant turns get loss (SFT), but for those whose `loss` is False.

    Attributes:
        tools: JSON text of each function on offer.
        tags: what it is about.
    """

    messages: tuple[Message, ...]
    category: str = ""
    source: str = ""
    tools: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    part: str = field(default="", compare=False, repr=False)

    def last_exchange(self) -> tuple[tuple[Message, ...], str] | None:
        """The turns before the last assistant turn with loss, and its text; None where nothing stands before one."""
        for at in range(len(self.messages) - 1, 0, -1):
            if self.messages[at].role == "assistant" and self.messages[at].loss:
                return self.messages[:at], self.messages[at].content
        return None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two replies to one prompt, `chosen` the better (PMP, reward model).

    Attributes:
        prompt: the turns before the reply, the last one a user turn; what both sides have in common.
        grade: strength of the preference in the annotators' own unit, None when the source has none.
        tags: facts about the pair kept for evaluation, e.g. ("correctness",), and what its prompt is about.
        chosen_reasoning, rejected_reasoning: what was thought before each reply, without tags.
        chosen_turns, rejected_turns: what stands between `prompt` and each reply where whole conversations are compared
            that part at the first reply: that reply, what the user said to it, and so on, a user turn last.
        round: of the collecting that the pair is from, where feedback is collected again and again; None: not known.
        provenance: of replies that were collected and judged: who preferred which reply of whom, as
            `align.feedback.provenance` writes it. Kept with the pair; it does not count in comparing two.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    grade: float | None = None
    category: str = ""
    source: str = ""
    tags: tuple[str, ...] = field(default=())
    tools: tuple[str, ...] = ()
    chosen_reasoning: str = ""
    rejected_reasoning: str = ""
    chosen_turns: tuple[Message, ...] = ()
    rejected_turns: tuple[Message, ...] = ()
    round: int | None = None
    provenance: Mapping[str, Any] | None = field(default=None, compare=False)
    part: str = field(default="", compare=False, repr=False)

    def swapped(self) -> Comparison:
        """The same pair with the other reply as the better one, which nobody said."""
        return replace(
            self,
            chosen=self.rejected,
            rejected=self.chosen,
            chosen_reasoning=self.rejected_reasoning,
            rejected_reasoning=self.chosen_reasoning,
            chosen_turns=self.rejected_turns,
            rejected_turns=self.chosen_turns,
            provenance=None,
        )

    @property
    def chosen_reply(self) -> Message:
        """The better reply as a turn."""
        return Message("assistant", self.chosen, self.chosen_reasoning)

    @property
    def rejected_reply(self) -> Message:
        """The worse reply as a turn."""
        return Message("assistant", self.rejected, self.rejected_reasoning)


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a solution and how it was judged (PRM800K: -1, 0 or 1; None where it was not)."""

    text: str
    rating: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply with its score, in the source's own unit; higher is better.

    Attributes:
        steps: where it is judged in parts.
        reasoning: what was thought before `content`, without tags.
        attributes: what it was rated by beside its score, e.g. (("correctness", 4.0), ("verbosity", 1.0)).
    """

    content: str
    score: float | None = None
    steps: tuple[Step, ...] = ()
    reasoning: str = ""
    attributes: tuple[tuple[str, float], ...] = ()

    @property
    def turn(self) -> Message:
        """The reply as a turn."""
        return Message("assistant", self.content, self.reasoning)


@dataclass(frozen=True, slots=True)
class Scored:
    """Replies to one prompt, each with a score of its own: k-way ratings, votes, steps; a single one is unpaired.

    Unpaired labels (KTO) are scores of 1.0 (desirable) and 0.0.
    """

    prompt: tuple[Message, ...]
    replies: tuple[Reply, ...]
    category: str = ""
    source: str = ""
    tags: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    part: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A query to answer (PPO, evaluation); `reference` is a known good answer where the source has one.

    `columns` are the row's further fields, for rewards: texts, numbers, true and false, and lists and objects of these
    (unit tests, several answers); they do not count in comparing two prompts.
    """

    messages: tuple[Message, ...]
    category: str = ""
    reference: str | None = None
    source: str = ""
    tools: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    part: str = field(default="", compare=False, repr=False)

    @property
    def tags(self) -> tuple[str, ...]:
        """What it is about: those of its columns, which keep them as the row has them."""
        return tags_in(self.columns.get("tags"))


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text for (continued) pretraining and the ptx loss."""

    text: str
    source: str = ""
    part: str = field(default="", compare=False, repr=False)


Record = Demonstration | Comparison | Scored | Prompt | Document


def tags_in(value: Any) -> tuple[str, ...]:
    """The different tags of a list of texts, or of InsTag's {"tag", "explanation"}; none in anything else."""
    named = [one.get("tag") if isinstance(one, dict) else one for one in value] if isinstance(value, list) else []
    if not all(one is None or isinstance(one, str) for one in named):
        return ()
    return tuple(dict.fromkeys(one for one in named if one))


def with_tags(record: Record, tags: tuple[str, ...]) -> Record:
    """The record with other tags in the place of its own; a document has none."""
    if isinstance(record, Prompt):
        others = {name: value for name, value in record.columns.items() if name != "tags"}
        return replace(record, columns=others | ({"tags": list(tags)} if tags else {}))
    return record if isinstance(record, Document) else replace(record, tags=tags)
