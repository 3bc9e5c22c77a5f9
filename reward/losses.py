"""Losses on pairs of scores. Pure: tensors in, tensors out, no reduction."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pairwise_logistic(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected) in nats per pair, shape (B,), in float32 at least (Bradley-Terry; Askell et al.
    2021, eq. 3.1: log(1 + exp(r_bad - r_good)))."""
    difference_B = chosen_B - rejected_B
    return -F.logsigmoid(difference_B.float() if difference_B.dtype.itemsize < 4 else difference_B)
