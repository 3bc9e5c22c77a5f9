"""The replies of the policy that training starts from, with which a judge compares the later ones.

They are those of the looks at held-out prompts before the policy's first step. Each rank keeps its own, and so do
checkpoints: what a run is compared with is the same however often it is resumed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from align.trainers.ppo.types import Samples
from rollouts.protocol import SamplingParams


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
    """The starting policy's replies to this rank's prompts, by the prompts and how often and how they were sampled."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Any]] = {}

    def keep(self, samples: Samples, scores: list[float] | None, way: SamplingParams) -> None:
        """Later replies to these prompts will be compared with these."""
        columns = {name: getattr(samples, name) for name in ("reply_ids", "replies", "finished")}
        self._kept[_key(samples, way)] = {**columns, "scores": scores}

    def to(self, samples: Samples, way: SamplingParams) -> Opening | None:
        """Its replies to the prompts of `samples`, sampled in the same way; None where it was not asked."""
        kept = self._kept.get(_key(samples, way))
        if kept is None:
            return None
        columns = {name: value for name, value in kept.items() if name != "scores"}
        return Opening(Samples(samples.prompts, samples.prompt_ids, **columns), kept["scores"])

    def state_dict(self) -> dict[str, Any]:
        """All of them as plain values."""
        return dict(self._kept)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._kept = dict(state)


def _key(samples: Samples, way: SamplingParams) -> str:
    prompts = hashlib.sha256(repr(samples.prompt_ids).encode()).hexdigest()[:16]
    return f"{prompts} temperature {way.temperature:g}"
