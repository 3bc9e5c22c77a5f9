"""Critic warm-up on replies that were sampled before, and keeping those of a warm-up that samples its own.

While the critic alone learns, the policy does not move, so that whoever sampled the same policy once need not do it
again; and sampling is most of what a warm-up costs. Nothing else is taken over: the trainer computes log-probabilities
and values and asks the reward as of replies that were just sampled. With the replies that it would have sampled a
warm-up is therefore the same to the bit.

Stored replies teach the critic alone: an iteration in which the policy learns too samples its own, also where its first
optimizer steps are the critic's. The prompts' order stays where it is meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from align.data.stored_replies import stop_of
from align.runtime.files import write_json_lines
from align.trainers.ppo.types import Samples, Scores
from data_formats.writing import as_row
from rollouts.protocol import SamplingParams


class WarmupRollouts:
    """The replies of iterations in which the critic alone learns. Its state is how far the stored ones were read.

    Args:
        stored: prompt-major, as many replies a prompt as the trainer samples; after the last prompt comes the first
            again. None: they are sampled.
        folder: where those that were sampled are kept, a file an iteration; None: nowhere.
        weights: what identifies the weights that they are sampled from, for that file.
    """

    def __init__(self, stored: Samples | None = None, *, folder: Path | None = None, weights: str = ""):
        self.stored, self.folder, self.weights = stored, folder, weights
        self.position = 0  # prompts read

    def next(self, prompts: int, generations: int, rank: int = 0, ranks: int = 1) -> Samples:
        """A rank's share of the replies to the next so many prompts: of all ranks in order they are the whole, however
        many ranks there are."""
        there, mine = len(self.stored) // generations, prompts // ranks
        first = self.position + rank * mine
        self.position += prompts
        rows = [at % there * generations + one for at in range(first, first + mine) for one in range(generations)]
        columns = ([getattr(self.stored, field.name)[row] for row in rows] for field in fields(Samples))
        return Samples(*map(tuple, columns))

    def rows(self) -> dict[str, list[Any]]:
        """What is learnt from, a row a reply, by its key of the recipe; nothing where it is sampled."""
        if self.stored is None:
            return {}
        return {"critic_warmup_from": list(zip(self.stored.prompt_ids, self.stored.reply_ids, strict=True))}

    @property
    def keeps(self) -> bool:
        """Whether what is sampled is kept."""
        return self.stored is None and self.folder is not None

    def keep(self, iteration: int, samples: Samples, scores: Scores, params: SamplingParams) -> None:
        """Write what was sampled in an iteration, that of all ranks."""
        about = {"iteration": iteration, "sampling": params.noted(), "weights": self.weights}
        rows = (row | about for row in _rows(samples, scores, params))
        write_json_lines(self.folder / f"{iteration}.jsonl", rows)

    def state_dict(self) -> dict[str, int]:
        """How many prompts were read."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Read on from `state_dict()`."""
        self.position = state["position"]


def _rows(samples: Samples, scores: Scores, params: SamplingParams) -> Iterator[dict[str, Any]]:
    """A row a prompt, which reads as scored replies too (`align.data.stored_replies`)."""
    for first in range(0, len(samples), params.n):
        replies = [_reply(samples, scores, at, params.max_new_tokens) for at in range(first, first + params.n)]
        yield as_row(samples.prompts[first]) | {"replies": replies}


def _reply(samples: Samples, scores: Scores, at: int, most: int) -> dict[str, Any]:
    ids, score = samples.reply_ids[at], float(scores.total_N[at])
    said = {"content": samples.replies[at], "score": None if math.isnan(score) else score}
    return said | {"stop": stop_of(samples.finished[at], len(ids), most), "tokens": len(ids), "token_ids": list(ids)}
