"""From the hidden states of a sequence to the one vector that the head reads.

The Qwen report (3.2.1) adds "a pooling layer" and names no kind. Every kind here works on a membership mask, so a
sequence may stand alone, padded on either side, packed behind others, or share its prompt's columns with other replies:

- `end_token` (default): the state of the last member, which collators make `<|im_end|>` (Bai et al. 2022, A.2);
- `last_token`: the state of the member before it, the reply's last token of content;
- `mean`, `max`: over all members, each dimension apart;
- `weighted_mean`: member t of T weighs t / (1 + ... + T) (Muennighoff 2022, SGPT);
- `attention`: softmax over the members of state . query / sqrt(d); the learnt query starts at 0, that is, as the mean.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from reward.head import Float32Module

Pooling = Literal["end_token", "last_token", "mean", "max", "attention", "weighted_mean"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


def last_counted(members_NT: Tensor) -> Tensor:
    """Index (N,) of the last 1 of each row of a mask; 0 for a row without any."""
    positions_T = torch.arange(members_NT.shape[-1], device=members_NT.device)
    return ((members_NT != 0) * positions_T).amax(-1)


class Pooler(Float32Module):
    """One vector a sequence; has a parameter (`query`, float32) for `attention` alone.

    Args:
        kind: one of `POOLINGS`.
        hidden_size: d.

    Raises:
        ValueError: an unknown kind.
    """

    def __init__(self, kind: str, hidden_size: int):
        super().__init__()
        if kind not in POOLINGS:
            raise ValueError(f"unknown pooling {kind!r}; known are {', '.join(POOLINGS)}")
        self.kind = kind
        if kind == "attention":
            self.query = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32))

    def columns_read(self, members_NT: Tensor) -> Tensor | None:
        """The one column (N,) of each sequence whose state is read; None where several are."""
        if self.kind not in ("end_token", "last_token"):
            return None
        at_N = last_counted(members_NT)
        if self.kind == "end_token":
            return at_N
        columns_T = torch.arange(members_NT.shape[1], device=members_NT.device)
        before_NT = (members_NT != 0) & (columns_T < at_N[:, None])
        return torch.where(before_NT.any(1), last_counted(before_NT), at_N)

    def forward(self, states_BTd: Tensor, members_NT: Tensor, rows_N: Tensor) -> Tensor:
        """Pooled states (N, d); those that are averages are computed in float32.

        Args:
            states_BTd: hidden states of B rows.
            members_NT: which columns of its row belong to each of N sequences; at least one each.
            rows_N: the row of each sequence.
        """
        members_NT, rows_N = (members_NT != 0).to(states_BTd.device), rows_N.to(states_BTd.device)
        at_N = self.columns_read(members_NT)
        if at_N is not None:
            return states_BTd[rows_N, at_N]
        if len(rows_N) > len(states_BTd):  # rows hold several sequences: take each one's columns alone
            order_NT, longest = members_NT.int().argsort(dim=1, descending=True, stable=True), members_NT.sum(1).max()
            columns_NT = order_NT[:, : int(longest)]
            members_NT, states_NTd = members_NT.gather(1, columns_NT), states_BTd[rows_N[:, None], columns_NT].float()
        else:
            states_NTd = states_BTd[rows_N].float()
        if self.kind == "max":
            return states_NTd.masked_fill(~members_NT[..., None], -math.inf).amax(1)
        states_NTd = states_NTd.masked_fill(~members_NT[..., None], 0.0)  # 0 times NaN would be NaN
        return torch.einsum("nt,ntd->nd", self._weights(states_NTd, members_NT), states_NTd)

    def _weights(self, states_NTd: Tensor, members_NT: Tensor) -> Tensor:
        if self.kind == "attention":
            logits_NT = (states_NTd * self.query).sum(-1) / math.sqrt(states_NTd.shape[-1])
            return logits_NT.masked_fill(~members_NT, -math.inf).softmax(-1)
        order_NT = members_NT.float() if self.kind == "mean" else members_NT.cumsum(-1).float() * members_NT
        return order_NT / order_NT.sum(-1, keepdim=True)
