"""The two losses of PPO (Schulman et al. 2017), as sums over the tokens that count, and the weights that tokens get.

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


def token_weights(mask_BT: Tensor, aggregation: str) -> Tensor:
    """weights_BT of the tokens' losses, float64, 0 at masked positions: 1 for `token` (divide the summed loss by the
    number of tokens), 1 / tokens of the reply for `sequence` (divide by the number of replies). Either way the divisor
    is the sum of the weights of all that is averaged.

    Raises:
        ValueError: an unknown aggregation.
    """
    counts_BT = (mask_BT != 0).double()
    if aggregation == "token":
        return counts_BT
    if aggregation == "sequence":
        return counts_BT / counts_BT.sum(1, keepdim=True).clamp(min=1)
    raise ValueError(f"unknown aggregation '{aggregation}': choose token or sequence")


@torch.no_grad()
def importance_weights(
    logps_BT: Tensor, sampler_logps_BT: Tensor, mask_BT: Tensor, level: str, cap: float
) -> tuple[Tensor, Stats]:
    """Truncated importance sampling (Ionides 2008): `min(policy / sampler, cap)`, the sampler being another program's
    or another time's version of the policy.

    Args:
        logps_BT: of the policy, before the update. sampler_logps_BT: of the same tokens under the same distribution, as
            the sampler computed it.
        level: `token` (each token's own ratio) or `sequence` (the ratio of the whole reply, for each of its tokens).
        cap: at least 1.

    Returns:
        (weights_BT, stats): weights are 1 at masked positions. Stats are sums over the tokens that count: `mean`,
        `truncated` (how many were capped), `tokens`.

    Raises:
        ValueError: unequal shapes or an unknown level.
    """
    same_shape(logps_BT=logps_BT, sampler_logps_BT=sampler_logps_BT, mask_BT=mask_BT)
    if level not in ("token", "sequence"):
        raise ValueError(f"unknown level '{level}': choose token or sequence")
    counts_BT = mask_BT != 0
    log_ratio_BT = keep(logps_BT, mask_BT) - keep(sampler_logps_BT, mask_BT)
    if level == "sequence":
        log_ratio_BT = keep(log_ratio_BT.sum(1, keepdim=True).expand_as(log_ratio_BT), mask_BT)
    ratio_BT = log_ratio_BT.exp()
    weights_BT = ratio_BT.clamp(max=cap)
    stats = {
        "mean": keep(weights_BT, mask_BT).sum(),
        "truncated": (counts_BT & (ratio_BT > cap)).sum().to(ratio_BT.dtype),
        "tokens": counts_BT.sum().to(ratio_BT.dtype),
    }
    return weights_BT, stats


def policy_loss(
    logps_BT: Tensor,
    old_logps_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    cliprange: float,
    *,
    dual_clip: float | None = None,
    weights_BT: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """Clipped surrogate: sum of `w max(-A r, -A clip(r, 1 - cliprange, 1 + cliprange))`, r = exp(logps - old_logps).

    With `dual_clip` = c, where A < 0, the term is at most `-A c` (Ye et al. 2020, "Mastering Complex Control in MOBA
    Games with Deep Reinforcement Learning", equation 5): a ratio that explodes on a bad token has no gradient.

    Args:
        logps_BT: of the policy being trained; carries the gradient.
        old_logps_BT, advantages_BT: constants of this update.
        mask_BT: 1 where a token of the policy stands.
        cliprange: above 0. dual_clip: above 1.
        weights_BT: w, constants; 1 when not given.

    Returns:
        (loss_sum, stats). Stats are detached scalars over the tokens that count: `clipped` (how many lost their
        gradient to the clip), `dual_clipped` (how many to the second one, where there is one), `approx_kl` (sum of
        (r - 1) - log r, an estimate of KL(old || new), never negative),
        `ratio` (sum), `ratio_max`, `ratio_min` (-inf and inf when nothing counts), `tokens`.

    Raises:
        ValueError: unequal shapes, cliprange not above 0, or dual_clip not above 1.
    """
    same_shape(logps_BT=logps_BT, old_logps_BT=old_logps_BT, advantages_BT=advantages_BT, mask_BT=mask_BT)
    _positive(cliprange, "cliprange")
    advantages_BT = keep(advantages_BT.detach(), mask_BT)
    log_ratio_BT = keep(logps_BT, mask_BT) - keep(old_logps_BT.detach(), mask_BT)
    ratio_BT = log_ratio_BT.exp()
    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - cliprange, 1 + cliprange)
    loss_BT = torch.maximum(plain_BT, clipped_BT)  # masked advantages are 0, so their terms are
    stats = {
        "clipped": (clipped_BT > plain_BT).sum().to(ratio_BT.dtype),
        **_ratio_stats(log_ratio_BT.detach(), mask_BT),
    }
    if dual_clip is not None:
        if not dual_clip > 1:
            raise ValueError(f"dual_clip must be above 1, found {dual_clip}")
        ceiling_BT = -advantages_BT * dual_clip
        above_BT = (advantages_BT < 0) & (loss_BT > ceiling_BT)
        loss_BT = torch.where(above_BT, ceiling_BT, loss_BT)
        stats["dual_clipped"] = above_BT.sum().to(ratio_BT.dtype)
    return weighted(loss_BT, weights_BT, mask_BT).sum(), stats


def _ratio_stats(log_ratio_BT: Tensor, mask_BT: Tensor) -> Stats:
    ratio_BT, counts_BT = log_ratio_BT.exp(), mask_BT != 0
    inf = ratio_BT.new_full((), torch.inf)
    return {
        "approx_kl": (torch.expm1(log_ratio_BT) - log_ratio_BT).sum(),
        "ratio": keep(ratio_BT, mask_BT).sum(),
        "ratio_max": torch.where(counts_BT, ratio_BT, -inf).amax() if ratio_BT.numel() else -inf,
        "ratio_min": torch.where(counts_BT, ratio_BT, inf).amin() if ratio_BT.numel() else inf,
        "tokens": counts_BT.sum().to(ratio_BT.dtype),
    }


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    cliprange_value: float | None,
    *,
    weights_BT: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """Sum of `0.5 * w max((v - R)², (v_clip - R)²)`, v_clip = old + clip(v - old, ±cliprange_value).

    Args:
        values_BT: of the critic being trained; carries the gradient.
        old_values_BT: the values that the advantages were computed with. returns_BT: the targets.
        mask_BT: 1 where a token of the policy stands.
        cliprange_value: above 0, in units of the (normalised) reward; None for no clipping.
        weights_BT: w, constants; 1 when not given.

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
        outside_BT = (values_BT - old_BT).detach().abs() > cliprange_value  # inside, the two differ by rounding alone
        clipped = (outside_BT & (bounded_BT > plain_BT)).sum().to(plain_BT.dtype)
    stats = {
        "clipped": clipped,
        "squared_error": plain_BT.detach().sum(),
        "value": values_BT.detach().sum(),
        "tokens": (mask_BT != 0).sum().to(plain_BT.dtype),
    }
    return 0.5 * weighted(error_BT, weights_BT, mask_BT).sum(), stats


def weighted(terms_BT: Tensor, weights_BT: Tensor | None, mask_BT: Tensor) -> Tensor:
    """`terms_BT` (0 at masked positions) times constant weights, in the precision of the terms; None: as they are."""
    if weights_BT is None:
        return terms_BT
    same_shape(terms_BT=terms_BT, weights_BT=weights_BT)
    return terms_BT * keep(weights_BT.detach(), mask_BT).to(terms_BT.dtype)


def _positive(number: float, name: str) -> None:
    if not number > 0:
        raise ValueError(f"{name} must be above 0, found {number}")
