"""How much better than expected each token was: with a critic's values, or with the other replies to the same prompt.

`gae` is generalised advantage estimation (Schulman et al. 2016, equations 11 to 16) and departs from the textbook in
one thing: a masked position is not a time step. The recursion carries over it, so a gap in the middle of a sequence (a
tool's output, padding on either side) gives the same numbers as the sequence without it. Nothing follows the last token
that counts: its next value is 0, for cut replies too. `discounted_returns` is what it leaves without a critic.

`rloo_advantages` and `grpo_advantages` take a whole reply for one action. Its reward R is the sum of its tokens'
rewards, so it holds the KL penalty where the rewards do, and every token of the reply has the reply's advantage. The
means are over the replies that count alone (those with a token that does); a reply that is the only one of its group
has nothing to be compared with and gets 0. Both are computed in float64: the deviation of equal rewards is their
rounding, and that is divided by.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.functional.masked import keep, same_shape, wide


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


def discounted_returns(rewards_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    """The reward from each token on, `sum over l of gamma^l r_{t+l}`; 0 at masked positions.

    With a KL penalty a token in the rewards and whitened over the batch it is REINFORCE++ (Hu 2025, arXiv 2501.03262:
    token-level KL penalty, global advantage normalisation); as it is, REINFORCE (Williams 1992) with rewards-to-go.

    Raises:
        ValueError: unequal shapes.
    """
    return gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, gamma, 1.0)[0]


def rloo_advantages(rewards_BT: Tensor, mask_BT: Tensor, groups_B: Tensor) -> Tensor:
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740; Kool et al. 2019): `R_i - mean of R_j, j != i`,
    over the replies to the same prompt. With k of them that is k / (k - 1) times the distance from their mean.

    Args:
        rewards_BT: reward given for the token at t. One at a masked position is ignored.
        mask_BT: 1 where a token of the policy stands; a row without any does not count.
        groups_B: replies to one prompt have one number, whichever it is and wherever they stand.

    Returns:
        advantages_BT, 0 at masked positions and for the only reply of a group, without gradient.

    Raises:
        ValueError: unequal shapes.
    """
    rewards_B, counts_B, mean_B, size_B = _groups(rewards_BT, mask_BT, groups_B)
    advantages_B = (rewards_B - mean_B) * size_B / (size_B - 1).clamp(min=1)
    return _on_tokens(advantages_B.where(counts_B & (size_B > 1), 0.0), rewards_BT, mask_BT)


def grpo_advantages(
    rewards_BT: Tensor, mask_BT: Tensor, groups_B: Tensor, *, scale: bool = True, eps: float = 1e-4
) -> Tensor:
    """Group relative advantages (Shao et al. 2024, arXiv 2402.03300, section 4.1.2, outcome supervision):
    `(R_i - mean) / deviation` of the replies to the same prompt.

    The paper does not say which deviation; it is that of a sample (divided by k - 1), with `eps` added to it, as in TRL
    and other public implementations. Departs from the paper where the rewards hold a KL: there it is in the loss alone.

    Args:
        scale: divide by the deviation; else it is "GRPO done right" (Liu et al. 2025, arXiv 2503.20783, section 3),
            which is RLOO's advantage times (k - 1) / k.
        eps: in units of the reward.
        rewards_BT, mask_BT, groups_B, and what is returned and raised: as of `rloo_advantages`.
    """
    rewards_B, counts_B, mean_B, size_B = _groups(rewards_BT, mask_BT, groups_B)
    advantages_B = rewards_B - mean_B
    if scale:
        square_B = _group_sums(advantages_B.square().where(counts_B, 0.0), groups_B)
        advantages_B = advantages_B / ((square_B / (size_B - 1).clamp(min=1)).sqrt() + eps)
    return _on_tokens(advantages_B.where(counts_B & (size_B > 1), 0.0), rewards_BT, mask_BT)


@torch.no_grad()
def _groups(rewards_BT: Tensor, mask_BT: Tensor, groups_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each reply: its reward (float64), whether it counts, the mean of its group and how many count there."""
    same_shape(rewards_BT=rewards_BT, mask_BT=mask_BT)
    counts_B = (mask_BT != 0).any(1)
    same_shape(groups_B=groups_B, rows_of_mask_BT=counts_B)
    rewards_B = keep(rewards_BT, mask_BT).double().sum(1)
    size_B = _group_sums(counts_B.double(), groups_B)
    return rewards_B, counts_B, _group_sums(rewards_B, groups_B) / size_B.clamp(min=1), size_B


def _group_sums(x_B: Tensor, groups_B: Tensor) -> Tensor:
    """The sum over each row's group. By a product, since CUDA adds scattered rows up in another order every time."""
    names_G, group_B = groups_B.unique(return_inverse=True)
    member_GB = (group_B == torch.arange(len(names_G), device=x_B.device)[:, None]).to(x_B.dtype)
    return (member_GB @ x_B)[group_B]


def _on_tokens(advantages_B: Tensor, like_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return keep(advantages_B.to(wide(like_BT).dtype)[:, None].expand_as(like_BT), mask_BT)
