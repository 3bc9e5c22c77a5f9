"""The two losses of PPO (Schulman et al. 2017), as sums over the tokens that count.

Value clipping follows OpenAI's baselines (Huang et al. 2023, policy detail 10): the larger of the clipped and the
unclipped error. Log-ratios are not clamped: a ratio that overflows shows as a loss that is not finite, for the caller
to stop at.
Inputs at masked positions are replaced before any arithmetic, so nothing there reaches a value or a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from align.functional.masked import keep, same_shape

Stats = dict[str, Tensor]


def policy_loss(
    logps_BT: Tensor, old_logps_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, cliprange: float
) -> tuple[Tensor, Stats]:
    """Clipped surrogate: sum of `max(-A r, -A clip(r, 1 - cliprange, 1 + cliprange))`, r = exp(logps - old_logps).

    Args:
        logps_BT: of the policy being trained; carries the gradient.
        old_logps_BT, advantages_BT: constants of this update.
        mask_BT: 1 where a token of the policy stands.
        cliprange: above 0.

    Returns:
        (loss_sum, stats). Stats are detached scalars over the tokens that count: `clipped` (how many lost their
        gradient to the clip), `approx_kl` (sum of (r - 1) - log r, an estimate of KL(old || new), never negative),
        `ratio` (sum), `ratio_max`, `ratio_min` (-inf and inf when nothing counts), `tokens`. `merge_stats` joins them.

    Raises:
        ValueError: unequal shapes, or cliprange not above 0.
    """
    same_shape(logps_BT=logps_BT, old_logps_BT=old_logps_BT, advantages_BT=advantages_BT, mask_BT=mask_BT)
    _positive(cliprange, "cliprange")
    advantages_BT = keep(advantages_BT.detach(), mask_BT)
    log_ratio_BT = keep(logps_BT, mask_BT) - keep(old_logps_BT.detach(), mask_BT)
    ratio_BT = log_ratio_BT.exp()
    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - cliprange, 1 + cliprange)
    loss_sum = torch.maximum(plain_BT, clipped_BT).sum()  # masked advantages are 0, so their terms are
    with torch.no_grad():
        counts_BT = mask_BT != 0
        inf = torch.tensor(float("inf"), dtype=ratio_BT.dtype, device=ratio_BT.device)
        stats = {
            "clipped": (clipped_BT > plain_BT).sum().to(ratio_BT.dtype),
            "approx_kl": (torch.expm1(log_ratio_BT) - log_ratio_BT).sum(),
            "ratio": keep(ratio_BT, mask_BT).sum(),
            "ratio_max": torch.where(counts_BT, ratio_BT, -inf).amax() if ratio_BT.numel() else -inf,
            "ratio_min": torch.where(counts_BT, ratio_BT, inf).amin() if ratio_BT.numel() else inf,
            "tokens": counts_BT.sum().to(ratio_BT.dtype),
        }
    return loss_sum, stats


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, cliprange_value: float | None
) -> tuple[Tensor, Stats]:
    """Sum of `0.5 * max((v - R)², (v_clip - R)²)`, v_clip = old + clip(v - old, ±cliprange_value).

    Args:
        values_BT: of the critic being trained; carries the gradient.
        old_values_BT: the values that the advantages were computed with. returns_BT: the targets.
        mask_BT: 1 where a token of the policy stands.
        cliprange_value: above 0, in units of the (normalised) reward; None for no clipping.

    Returns:
        (loss_sum, stats). Stats are detached scalars over the tokens that count: `clipped` (how many lost their
        gradient to the clip), `squared_error` (sum of (v - R)², unclipped, for `explained_variance`), `value` (sum),
        `tokens`.

    Raises:
        ValueError: unequal shapes, or cliprange_value not above 0.
    """
    same_shape(values_BT=values_BT, old_values_BT=old_values_BT, returns_BT=returns_BT, mask_BT=mask_BT)
    values_BT, returns_BT = keep(values_BT, mask_BT), keep(returns_BT.detach(), mask_BT)
    plain_BT = (values_BT - returns_BT).square()
    error_BT, clipped = plain_BT, plain_BT.new_zeros(())
    if cliprange_value is not None:
        _positive(cliprange_value, "cliprange_value")
        old_BT = keep(old_values_BT.detach(), mask_BT)
        moved_BT = old_BT + (values_BT - old_BT).clamp(-cliprange_value, cliprange_value)
        bounded_BT = (moved_BT - returns_BT).square()
        error_BT = torch.maximum(plain_BT, bounded_BT)
        clipped = (bounded_BT > plain_BT).sum().to(plain_BT.dtype)
    stats = {
        "clipped": clipped,
        "squared_error": plain_BT.detach().sum(),
        "value": values_BT.detach().sum(),
        "tokens": (mask_BT != 0).sum().to(plain_BT.dtype),
    }
    return 0.5 * error_BT.sum(), stats


def _positive(number: float, name: str) -> None:
    if not number > 0:
        raise ValueError(f"{name} must be above 0, found {number}")
