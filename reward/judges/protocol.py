"""What a judge is: two replies to each prompt in, who won out.

A reward says how good one reply is, a judge which of two is better. Any reward is a judge (the higher score wins), but
not the other way round: people who ranked replies, a function that sees both, a model that is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from reward.protocol import Sample

Winner = Literal["first", "second", "tie"]


@dataclass(frozen=True, slots=True)
class ReplyPair:
    """Two replies to the same prompt, each as a reward would get it.

    Attributes:
        models: whose replies they are, where that is known; people's rankings that hold no replies go by it.
    """

    first: Sample
    second: Sample
    models: tuple[str, str] = ("", "")

    @property
    def alike(self) -> bool:
        """Whether both say the same: a tie that nobody need be asked about."""
        return self.first.completion == self.second.completion


@dataclass(frozen=True, slots=True)
class Judgment:
    """One verdict on a pair.

    Attributes:
        winner: None where there is none: an answer that could not be read, a reward that failed.
        by: who of several judged; empty for a judge that is one.
        scores: of the first and the second reply, where the judge gives each one.
        note: why, or what was answered, for whoever reads the file.
    """

    winner: Winner | None
    by: str = ""
    scores: tuple[float, float] | None = None
    note: str = ""


ALIKE = Judgment("tie", note="both replies are the same")


@runtime_checkable
class Judge(Protocol):
    """Anything that compares replies.

    Attributes:
        name: under which its figures stand in files; letters, digits, `_`, `.`, `-`.
        described: what follows "judged by" in a sentence ("the reward model runs/a/rm", "3 annotators of votes.csv").
    """

    name: str
    described: str

    def compare(self, pairs: Sequence[ReplyPair]) -> list[list[Judgment]]:
        """The judgments on each pair, in order: one, or one an annotator; none where the judge has nothing on it.

        Raises:
            RewardError: the judge failed as a whole; nothing that was paid for is lost.
        """
        ...
