"""Estimates of KL(policy || reference) from the log-probabilities of sampled tokens.

The three estimators of Schulman, "Approximating KL Divergence" (2020), with d = log policy - log reference of a token
that the *policy* sampled: k1 = d (unbiased, noisy, can be negative), k2 = d²/2 (biased, its gradient is that of the
KL of the one token), k3 = exp(-d) - 1 + d (unbiased, never negative). No clamping: a clamp would bias them in silence.

As a penalty in the reward only k1 has the right gradient: there the estimate is a constant, and the gradient of the
KL through the estimate itself, which is missing, averages to 0 for k1 alone (Korbak et al. 2022, "RL with KL penalties
is better viewed as Bayesian inference"). As a term of the loss, k2's own gradient sees only the token at hand, not what
it changes for later ones, k1's averages to 0, and k3's is that of KL(reference || policy); `kl_loss` therefore takes
the gradient of the whole reply's KL.

All of them assume samples from the full distribution. Samples drawn with top-p < 1 bias the estimate; then it is a
penalty, not a measurement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.functional.clipped_losses import weighted
from align.functional.masked import keep, same_shape, wide


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


def kl_loss(
    logps_BT: Tensor,
    ref_logps_BT: Tensor,
    mask_BT: Tensor,
    kind: str = "k1",
    *,
    weights_BT: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the estimates, as a term of the policy's loss.

    The value is the estimate's and the gradient, straight through it, that of the KL of the whole reply,
    `sum over t of (sum over s >= t of d_s) grad logps_t`: what a token costs is its own log-ratio and those of the
    tokens it leads to (the score-function gradient of E[sum of d], with the past left out, which averages to 0). It
    takes the tokens for samples of the policy in training: exact in the first step on a rollout, close while the ratios
    stay near 1. (Shao et al. 2024 take k3's own gradient: `examples/ppo_published_variants.py`.)

    Args:
        logps_BT: of the policy being trained; carries the gradient. ref_logps_BT: constants.
        mask_BT: 1 where a token of the policy stands.
        weights_BT: constants a token; 1 when not given.

    Returns:
        (loss_sum, stats): stats are sums over the tokens that count, `estimate` and `tokens`.

    Raises:
        ValueError: unequal shapes or an unknown kind.
    """
    same_shape(logps_BT=logps_BT, ref_logps_BT=ref_logps_BT, mask_BT=mask_BT)
    logps_BT, ref_logps_BT = keep(logps_BT, mask_BT), keep(ref_logps_BT.detach(), mask_BT)
    estimate_BT = kl_estimate(logps_BT, ref_logps_BT, kind)
    log_ratio_BT = (logps_BT - ref_logps_BT).detach()
    to_go_BT = log_ratio_BT.flip(1).cumsum(1).flip(1)
    estimate_BT = estimate_BT.detach() + to_go_BT * (logps_BT - logps_BT.detach())
    stats = {"estimate": estimate_BT.detach().sum(), "tokens": (mask_BT != 0).sum().to(estimate_BT.dtype)}
    return weighted(estimate_BT, weights_BT, mask_BT).sum(), stats
