"""Losses on pairs of scores. Pure: tensors in, tensors out; the only reduction is the mean over a prompt's pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pairwise_logistic(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected) in nats per pair, shape (B,), in float32 at least (Bradley-Terry; Askell et al.
    2021, eq. 3.1: log(1 + exp(r_bad - r_good)))."""
    difference_B = chosen_B - rejected_B
    return -F.logsigmoid(difference_B.float() if difference_B.dtype.itemsize < 4 else difference_B)


def preference_loss(
    chosen_B: Tensor,
    rejected_B: Tensor,
    *,
    margins_B: Tensor | float = 0.0,
    targets_B: Tensor | float = 1.0,
    label_smoothing: float = 0.0,
    centering: float = 0.0,
) -> Tensor:
    """Loss of every pair in nats, shape (B,), in float32 at least.

    With x = chosen - rejected - margin and target t, smoothed to t' = (1 - s) t + s (1 - t):
    -t' log sigmoid(x) - (1 - t') log sigmoid(-x) + centering * (chosen + rejected)^2.

    Args:
        chosen_B, rejected_B: scores.
        margins_B: what the difference must exceed (Llama 2, section 3.2.2, eq. 2).
        targets_B: the probability that the chosen reply is the better; 0.5 is a tie as a soft label.
        label_smoothing: s, below 0.5: the share of labels taken to be wrong ("conservative" labels, Mitchell 2023).
        centering: coefficient of Eisenstein et al. 2023 ("Helping or herding?", eq. 2), which fixes the zero point that
            a loss on differences leaves open.
    """
    wide = torch.promote_types(chosen_B.dtype, torch.float32)
    chosen_B, rejected_B = chosen_B.to(wide), rejected_B.to(wide)
    x_B = chosen_B - rejected_B - margins_B
    right = (1 - 2 * label_smoothing) * torch.as_tensor(targets_B, dtype=wide, device=x_B.device) + label_smoothing
    losses_B = -right * F.logsigmoid(x_B) - (1 - right) * F.logsigmoid(-x_B)
    return losses_B + centering * (chosen_B + rejected_B).square() if centering else losses_B


def mean_by_group(losses_P: Tensor, groups_P: Tensor, count: int) -> Tensor:
    """Mean loss of each group's pairs, shape (count,), 0 for a group without any.

    With all K (K - 1) / 2 pairs of a prompt's replies as its group: 1 / C(K, 2) of InstructGPT (2203.02155, eq. 1).
    """
    sums_G = losses_P.new_zeros(count).index_add(0, groups_P, losses_P)
    sizes_G = torch.bincount(groups_P, minlength=count).clamp(min=1)
    return sums_G / sizes_G
