"""The loss of supervised and pretraining stages: negative log-likelihood of the next token, as a sum.

The shift happens here, on the labels and not on the logits: `logits[:, :-1]` would make the gradient of the logits
be copied once more.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from align.functional.logprobs import token_logprobs
from align.functional.masked import keep, masked_sum, same_shape
from align.functional.reductions import IGNORE


def causal_nll_sum(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log p(label) over the labels that count, in nats, and how many these are.

    Args:
        logits_BTV: the model's output for the whole sequence.
        labels_BT: aligned with the input ids (the shift is done here: logits at t are judged by the label at t + 1);
            -100 means no loss. The first label has no logits before it and never counts.

    Returns:
        (nll_sum, count), both 0-dimensional; count is int64. Divide by the count of the whole optimizer step.

    Raises:
        ValueError: shapes that do not fit.
        RuntimeError, IndexError: a label that is outside the vocabulary and not -100 (from torch).
    """
    same_shape(logits_BTV_without_V=logits_BTV[..., 0], labels_BT=labels_BT)
    next_BT = F.pad(labels_BT[:, 1:], (0, 1), value=IGNORE)
    counts_BT = next_BT != IGNORE
    logps_BT = token_logprobs(logits_BTV, torch.where(counts_BT, next_BT, 0))
    return -masked_sum(logps_BT, counts_BT), counts_BT.sum()


def predicting_positions(weights_BT: Tensor) -> Tensor:
    """Where the LM head is needed: flat indices (N) into (B, T), ascending, of the positions *before* the labels that
    weigh something. The label judged at flat position p is the one at p + 1."""
    return F.pad(weights_BT[:, 1:], (0, 1)).flatten().nonzero().squeeze(-1)


def weighted_nll_sum(logits_NV: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
    """Sum of weight * -log p(label), in nats; 0-dimensional, divided by nothing.

    Args:
        logits_NV: one row for every label, already shifted (`predicting_positions`).
        labels_N: int64, within the vocabulary.
        weights_N: without gradient (`align.functional.reductions`); where it is 0, logits of NaN do no harm.

    Raises:
        ValueError: shapes that do not fit.
    """
    same_shape(logits_NV_without_V=logits_NV[..., 0], labels_N=labels_N, weights_N=weights_N)
    logps_N = keep(token_logprobs(logits_NV, labels_N), weights_N)
    return -(logps_N * weights_N.to(logps_N.dtype)).sum()
