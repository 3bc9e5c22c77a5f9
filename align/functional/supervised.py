"""The loss of supervised and pretraining stages: negative log-likelihood of the next token, as a sum.

The shift happens here, on the labels and not on the logits: `logits[:, :-1]` would make the gradient of the logits
be copied once more.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from align.functional.logprobs import token_logprobs
from align.functional.masked import masked_sum, same_shape

IGNORE = -100


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
