"""What truncated sampling recorded of each reply token, in the layout of the update.

The supports of a batch differ in size by orders of magnitude (one id where the policy is sure, thousands where it is
not), so they are stored end to end, and padded for a micro-batch only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.trainers.experience import TokenBatch
from rollouts.protocol import Completion


def full_logprobs(completion: Completion) -> tuple[float, ...] | None:
    """The engine's log-probability (nats) of each token under the full temperature-divided distribution.

    None when the engine gave neither these nor log-probabilities with their kept mass.
    """
    if completion.full_logprobs is not None:
        return completion.full_logprobs
    if completion.logprobs is None or completion.kept_mass is None:
        return None
    return tuple(
        logprob + math.log(kept) for logprob, kept in zip(completion.logprobs, completion.kept_mass, strict=True)
    )


@dataclass(frozen=True, slots=True)
class SupportTensor:
    """The ids that could be drawn at every action of N rows; S states as in `TokenBatch`.

    Attributes:
        ids_F: (F) int32, the supports one after the other.
        starts_NS: (N, S) int64, where the support of an action begins in `ids_F`.
        counts_NS: (N, S) int64, its size; 0 where the action is no token of a reply.
    """

    ids_F: Tensor
    starts_NS: Tensor
    counts_NS: Tensor

    @classmethod
    def from_supports(cls, supports: Sequence[Sequence[Sequence[int]] | None], tokens: TokenBatch) -> SupportTensor:
        """Put `Samples.supports` into the layout of `tokens`, on its device.

        Raises:
            ValueError: a reply without support, or one with another number of them than it has tokens.
        """
        mask_NS = tokens.mask_NS.cpu()
        for row, (support, length) in enumerate(zip(supports, mask_NS.sum(1).tolist(), strict=True)):
            if support is None or len(support) != length:
                found = "none" if support is None else f"{len(support)}"
                raise ValueError(
                    f"reply {row} has {length} tokens and {found} recorded supports: the engine must return one a token"
                )
        counts_NS = torch.zeros(mask_NS.shape, dtype=torch.int64)
        counts_NS[mask_NS] = torch.tensor([len(ids) for support in supports for ids in support])
        starts_NS = (counts_NS.flatten().cumsum(0) - counts_NS.flatten()).view_as(counts_NS)
        ids_F = torch.tensor([token for support in supports for ids in support for token in ids], dtype=torch.int32)
        device = tokens.input_ids_NT.device
        return cls(ids_F.to(device), starts_NS.to(device), counts_NS.to(device))

    def rows(self, rows_B: Tensor, states: int | None = None) -> SupportTensor:
        """These rows, cut to `states` (those of `TokenBatch.rows`; default all). The ids are shared, not copied."""
        return SupportTensor(self.ids_F, self.starts_NS[rows_B, :states], self.counts_NS[rows_B, :states])

    def from_state(self, first: int) -> SupportTensor:
        """The same without the states before `first`."""
        return SupportTensor(self.ids_F, self.starts_NS[:, first:], self.counts_NS[:, first:])

    def padded(self) -> tuple[Tensor, Tensor]:
        """(ids_NSK int64, mask_NSK bool) as `functional.support_logprobs` takes them; K is the largest support's size.

        Padded places hold id 0.
        """
        places_K = torch.arange(max(1, int(self.counts_NS.max())), device=self.ids_F.device)
        mask_NSK = places_K < self.counts_NS[..., None]
        at_NSK = (self.starts_NS[..., None] + places_K).masked_fill(~mask_NSK, 0)
        return self.ids_F[at_NSK].long().masked_fill(~mask_NSK, 0), mask_NSK
