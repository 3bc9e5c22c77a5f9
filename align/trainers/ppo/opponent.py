"""The replies of the policy that training starts from, with which a judge compares the later ones.

They are those of the looks at held-out prompts before the policy's first step. Each rank keeps its own, and so do
checkpoints: what a run is compared with is the same however often it is resumed, and on how many ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from align.trainers.ppo.types import Samples
from rollouts.protocol import SamplingParams

REPLY = ("reply_ids", "replies", "finished")


@dataclass(frozen=True, slots=True)
class Opening:
    """N replies to the prompts of some samples, in their order.

    Attributes:
        samples: the same prompts with the starting policy's replies.
        scores: what the gold reward said of them; None without one.
    """

    samples: Samples
    scores: list[float] | None


class Opponent:
    """The starting policy's replies by their prompt and how they were sampled; several to one prompt in turn."""

    def __init__(self) -> None:
        self._kept: dict[str, list[dict[str, Any]]] = {}

    def keep(self, samples: Samples, scores: list[float] | None, way: SamplingParams) -> None:
        """Later replies to these prompts will be compared with these."""
        kept: dict[str, list[dict[str, Any]]] = {}
        for row, prompt_ids in enumerate(samples.prompt_ids):
            reply = {name: getattr(samples, name)[row] for name in REPLY}
            kept.setdefault(_key(prompt_ids, way), []).append(
                {**reply, "score": None if scores is None else scores[row]}
            )
        self._kept |= kept

    def to(self, samples: Samples, way: SamplingParams) -> Opening | None:
        """Its replies to the prompts of `samples`, sampled in the same way; None where it was not asked."""
        ahead = {key: cycle(replies) for key, replies in self._kept.items()}
        rows = [next(ahead.get(_key(ids, way), cycle(())), None) for ids in samples.prompt_ids]
        if None in rows:
            return None
        columns = {name: tuple(row[name] for row in rows) for name in REPLY}
        scores = [row["score"] for row in rows]
        return Opening(Samples(samples.prompts, samples.prompt_ids, **columns), None if None in scores else scores)

    def state_dict(self) -> dict[str, Any]:
        """All of them as plain values."""
        return dict(self._kept)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._kept = dict(state)

    def dealt(self, states: list[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
        """Every rank knows all replies, to whichever prompts it is given."""
        whole: dict[str, list[dict[str, Any]]] = {}
        for state in states:
            for key, replies in state.items():
                known = whole.setdefault(key, [])
                whole[key] = known if replies == known else known + replies  # the same where they were dealt before
        return [whole] * ranks


def _key(prompt_ids: Sequence[int], way: SamplingParams) -> str:
    prompt = hashlib.sha256(repr(tuple(prompt_ids)).encode()).hexdigest()[:16]
    return f"{prompt} temperature {way.temperature:g}"
