"""Loss reductions of supervised finetuning: what one token's loss weighs, and what the sum of losses is divided by.

The Qwen report leaves the reduction open; one-sample multi-turn training (ChatGLM2) made the choice visible. With M
conversations, T_i turns with loss in conversation i and n_ij tokens with loss in its j-th such turn, the loss of an
optimizer step is `sum(weight * nll) / sum(units)`, both sums over all rows, micro-batches and ranks of the step:

    reduction      weight of a token              units of conversation i     meaning
    token_mean     1                              sum_j n_ij                  mean over tokens
    session_mean   1 / (T_i n_ij)                 1                           mean over turns, then over conversations
    turn_mean      1 / n_ij                       T_i                         mean over turns
    prefix_mean    (sum_{k=j..T_i} 1/k) / n_ij    T_i                         see below

`prefix_mean` is the gradient of splitting every conversation into its prefixes (A), (A, B), (A, B, C), …, each a sample
whose loss is the mean over all its turns, without running any prefix. `turn_mean` equals that split with loss on the
last turn of each prefix alone.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from align.functional.masked import same_shape

Reduction = Literal["token_mean", "session_mean", "turn_mean", "prefix_mean"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
IGNORE = -100


def counted_labels(labels_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
    """Which labels count, bool (B, T): not -100, and not the first token of a row or of a packed sample.

    A first token has no logits before it; in a pack, those before it belong to another sample.

    Args:
        labels_BT: aligned with the input ids, -100 = no loss.
        segments_BT: the number of the sample inside its packed row (any numbers that differ between neighbours).
    """
    counts_BT = labels_BT != IGNORE
    counts_BT[:, :1] = False
    if segments_BT is not None:
        same_shape(labels_BT=labels_BT, segments_BT=segments_BT)
        counts_BT[:, 1:] &= segments_BT[:, 1:] == segments_BT[:, :-1]
    return counts_BT


def loss_weights(
    labels_BT: Tensor,
    reduction: Reduction = "token_mean",
    turns_BT: Tensor | None = None,
    segments_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The weight of every label and the units of the batch, see the table in the module's head.

    Args:
        labels_BT: aligned with the input ids, -100 = no loss; the first label of a sample never counts.
        reduction: one of `REDUCTIONS`.
        turns_BT: number of the turn each label belongs to, 1 or more where there is loss; increasing within a sample,
            gaps allowed. Not read by "token_mean".
        segments_BT: samples of packed rows, 0 = padding; None: every row is one sample.

    Returns:
        weights_BT (float64, 0 where no label counts) and units (0-dimensional int64).

    Raises:
        ValueError: an unknown reduction, missing turns, shapes that do not fit, or a label with loss outside any turn.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"loss_reduction must be one of {', '.join(REDUCTIONS)}, found '{reduction}'")
    counts_BT = counted_labels(labels_BT, segments_BT)
    if reduction == "token_mean":
        return counts_BT.double(), counts_BT.sum()
    if turns_BT is None:
        raise ValueError(
            f"loss_reduction '{reduction}' needs the turn of every label ('turns'), but the rows have none"
        )
    same_shape(labels_BT=labels_BT, turns_BT=turns_BT)
    if bool((counts_BT & (turns_BT < 1)).any()):
        raise ValueError("a label with loss belongs to no turn (its entry in 'turns' is below 1)")
    row_B1 = torch.arange(len(labels_BT), device=labels_BT.device).unsqueeze(1)
    sample_BT = row_B1.expand_as(labels_BT) if segments_BT is None else row_B1 * (segments_BT.max() + 1) + segments_BT
    weights_N, units = _turn_weights(sample_BT[counts_BT], turns_BT[counts_BT], reduction)
    weights_BT = torch.zeros(labels_BT.shape, dtype=torch.float64, device=labels_BT.device)
    weights_BT[counts_BT] = weights_N
    return weights_BT, units


def _turn_weights(sample_N: Tensor, turn_N: Tensor, reduction: Reduction) -> tuple[Tensor, Tensor]:
    """Weights of tokens, and the units; turns G are numbered by sample and then by turn, conversations C by sample."""
    if not len(turn_N):
        return turn_N.double(), turn_N.new_zeros(())
    stride = turn_N.max() + 1
    key_G, turn_N, tokens_G = (sample_N * stride + turn_N).unique(return_inverse=True, return_counts=True)
    _, conversation_G, turns_C = (key_G // stride).unique_consecutive(return_inverse=True, return_counts=True)
    if reduction == "session_mean":
        share_G, units = 1 / turns_C.double()[conversation_G], turns_C.new_tensor(len(turns_C))
    elif reduction == "turn_mean":
        share_G, units = torch.ones_like(tokens_G, dtype=torch.float64), turns_C.sum()
    else:
        inverse = 1 / torch.arange(1, int(turns_C.max()) + 1, dtype=torch.float64, device=turns_C.device)
        harmonic = F.pad(inverse.cumsum(0), (1, 0))  # harmonic[n] = 1/1 + … + 1/n
        first_C = turns_C.cumsum(0) - turns_C
        before_G = torch.arange(len(tokens_G), device=turns_C.device) - first_C[conversation_G]  # j - 1
        share_G, units = harmonic[turns_C[conversation_G]] - harmonic[before_G], turns_C.sum()
    return (share_G / tokens_G)[turn_N], units
