"""The per-token reward of RLHF: a KL penalty on every token, the reply's score on its last (Ziegler et al. 2019;
Huang et al. 2023, policy detail 8).

The score stands on the last token that counts (the end token, when it was drawn), not one position after it as in
OpenAI's code: no value of a padding position is ever read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.functional.masked import keep, same_shape, wide


def shape_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """Rewards a token.

    Args:
        scores_B: one score a reply, normalised, clipped and penalised as the caller wishes.
        kl_BT: KL estimate a token, in nats.
        mask_BT: 1 where a token of the reply stands. A row without any has no place for its score and gets zeros.
        kl_coef: weight of the penalty, reward units a nat.

    Returns:
        rewards_BT: `-kl_coef * kl` at each token, the score added at the last; 0 at masked positions.

    Raises:
        ValueError: shapes that do not fit.
    """
    same_shape(kl_BT=kl_BT, mask_BT=mask_BT)
    same_shape(scores_B=scores_B, rows_of_mask_BT=mask_BT.any(1))
    counts_BT = mask_BT != 0
    remaining_BT = counts_BT.flip(1).cumsum(1).flip(1)  # tokens from here to the end, this one included
    is_last_BT = counts_BT & (remaining_BT == 1)
    penalty_BT = -kl_coef * keep(kl_BT, mask_BT)
    return penalty_BT + torch.where(is_last_BT, wide(scores_B).to(penalty_BT.dtype).unsqueeze(1), 0.0)


def penalize(
    scores_B: Tensor,
    ended_B: Tensor,
    lengths_B: Tensor,
    *,
    missing_eos_penalty: float = 0.0,
    length_penalty: float = 0.0,
    length_penalty_free: int = 0,
) -> Tensor:
    """Scores after the penalties for replies without an end and for long ones, in the reward's own unit.

    Args:
        ended_B: whether the policy ended the reply itself. lengths_B: tokens of the reply, its end included.
        missing_eos_penalty: subtracted from the score of a reply without an end. (Huang et al. 2023, policy detail 5,
            put a constant in its place: `examples/ppo_published_variants.py`.)
        length_penalty: subtracted for each token after the first `length_penalty_free`.

    Raises:
        ValueError: unequal shapes.
    """
    same_shape(scores_B=scores_B, ended_B=ended_B, lengths_B=lengths_B)
    scores_B = torch.where(ended_B, scores_B, scores_B - missing_eos_penalty)
    if length_penalty:
        scores_B = scores_B - length_penalty * (lengths_B - length_penalty_free).clamp(min=0).to(scores_B)
    return scores_B
