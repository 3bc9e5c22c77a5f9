"""What every benchmark is made of: a prompt with replies, some of them right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from align.data.replies import PromptedReply
from data_formats.splitting import text_key

Scores = Sequence[Sequence[float]]  # of each case, of each of its replies


@dataclass(frozen=True)
class Case:
    """A row of a benchmark.

    Attributes:
        replies: the `right` right ones first, then the wrong ones.
        labels: what it counts for, by heading: {"subset": "hep-go"}.
        file, row: where it stands.
        id: the row's own name, where the formula asks for it.
        chosen_pairs: (right, wrong) of the replies that are compared, where not every right with every wrong one is.
        headline: False: it counts in the parts that say so alone (SHP's pairs with nearly equal votes).
    """

    replies: tuple[PromptedReply, ...]
    right: int
    labels: dict[str, str]
    file: str
    row: int
    id: str = ""
    chosen_pairs: tuple[tuple[int, int], ...] | None = None
    headline: bool = True

    @cached_property
    def pairs(self) -> Sequence[tuple[int, int]]:
        """Places of a right and a wrong reply that are compared."""
        if self.chosen_pairs is not None:
            return self.chosen_pairs
        return [(one, other) for one in range(self.right) for other in range(self.right, len(self.replies))]

    @cached_property
    def prompt(self) -> str:
        """What tells the prompt, as for held-out pairs: the first user turn."""
        said = (message.content for message in self.replies[0].prompt if message.role == "user")
        return text_key(next(said, ""))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval (None: none can be told), and over how many things it is."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a benchmark's formula makes of scores.

    Attributes:
        overall: None where no part of it can be told.
        parts: by heading and name.
        lacking: parts that the published figure has and the files do not.
        matrix: shares by style of the right (rows) and of the wrong reply (columns), of RM-Bench.
        terms: what a formula adds up, of RewardBench 2's Ties.
    """

    overall: Estimate | None
    parts: dict[str, dict[str, Estimate]]
    lacking: tuple[str, ...] = ()
    matrix: tuple[tuple[float, ...], ...] | None = None
    terms: dict[str, float] = field(default_factory=dict)
