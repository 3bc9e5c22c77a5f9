"""Generalised advantage estimation (Schulman et al. 2016, equations 11 to 16) on masked token sequences.

Departs from the textbook in one thing: a masked position is not a time step. The recursion carries over it, so a gap in
the middle of a sequence (a tool's output, padding on either side) gives the same numbers as the sequence without it.
Nothing follows the last token that counts: its next value is 0, for cut replies too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.functional.masked import keep, same_shape


@torch.no_grad()
def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and the critic's targets.

    Args:
        rewards_BT: reward given for the token at t. One at a masked position is ignored.
        values_BT: the critic's value of the state *before* the token at t.
        mask_BT: 1 where a token of the policy stands.
        gamma, lam: discount and trace decay, each in [0, 1].

    Returns:
        (advantages_BT, returns_BT), returns = advantages + values; both 0 at masked positions, without gradient.

    Raises:
        ValueError: unequal shapes.
    """
    same_shape(rewards_BT=rewards_BT, values_BT=values_BT, mask_BT=mask_BT)
    rewards_BT, values_BT = keep(rewards_BT, mask_BT), keep(values_BT, mask_BT)
    counts_BT = mask_BT != 0
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = rewards_BT.new_zeros(rewards_BT.shape[0])
    trace_B = torch.zeros_like(next_value_B)
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        here_B = counts_BT[:, t]
        trace_B = torch.where(here_B, delta_B + gamma * lam * trace_B, trace_B)
        next_value_B = torch.where(here_B, values_BT[:, t], next_value_B)
        advantages_BT[:, t] = trace_B
    advantages_BT = keep(advantages_BT, mask_BT)
    return advantages_BT, advantages_BT + values_BT
