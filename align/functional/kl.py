"""Estimates of KL(policy || reference) from the log-probabilities of sampled tokens.

The three estimators of Schulman, "Approximating KL Divergence" (2020), with d = log policy - log reference of a token
that the *policy* sampled: k1 = d (unbiased, noisy, can be negative), k2 = d²/2 (biased, its gradient is that of the
KL), k3 = exp(-d) - 1 + d (unbiased, never negative). No clamping: a clamp would bias them in silence.

All of them assume samples from the full distribution. Samples drawn with top-p < 1 bias the estimate; then it is a
penalty, not a measurement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.functional.masked import same_shape, wide


def kl_estimate(logps: Tensor, ref_logps: Tensor, kind: str = "k1") -> Tensor:
    """One estimate a token, in nats.

    Args:
        logps, ref_logps: log-probabilities of the same tokens, of one shape.
        kind: `k1`, `k2` or `k3`.

    Returns:
        A tensor of that shape. Masked positions are computed like the others: mask the result.

    Raises:
        ValueError: unequal shapes or an unknown kind.
    """
    same_shape(logps=logps, ref_logps=ref_logps)
    difference = wide(logps) - wide(ref_logps)
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference.square()
    if kind == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"unknown KL estimator '{kind}': choose k1, k2 or k3")
