"""What PPO's losses are made of beside the surrogate, and what they tell the log.

The policy's loss of a micro-batch is the clipped surrogate, with tokens weighed for a sampler that is not quite the
policy, plus `kl_coef` times the KL term (`kl_in: loss`), minus `entropy_coef` times the entropy. Everything is a sum
over reply tokens; the learner divides by the count of the whole minibatch.

A figure is a `Mean`, a `Largest` or a `Smallest`: its type says how it is joined over micro-batches and ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from align import functional
from align.functional.clipped_losses import weighted
from align.functional.masked import keep
from align.recipe.ppo_section import PPOConfig
from align.trainers.ppo.forward import ReplyLogprobs
from align.trainers.ppo.types import Experience


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of one micro-batch for the log.

    Attributes:
        amount: scalar; summed, or the largest or smallest seen.
        count: scalar, how many tokens (or replies) it is of.
    """

    amount: Tensor
    count: Tensor
    join: ClassVar[Callable[[Tensor, Tensor], Tensor]]

    def with_other(self, other: Self) -> Self:
        """Of both micro-batches, or ranks, together."""
        return type(self)(type(self).join(self.amount, other.amount), self.count + other.count)

    def value(self) -> float | None:
        """What is logged; None where nothing was counted."""
        return float(self.amount) if float(self.count) else None


class Mean(Figure):
    """A sum, logged divided by the count; 0 of nothing."""

    __slots__ = ()
    join = staticmethod(torch.add)

    def value(self) -> float:
        return float(self.amount) / (float(self.count) or 1.0)


class Largest(Figure):
    """The largest of all."""

    __slots__ = ()
    join = staticmethod(torch.maximum)


class Smallest(Figure):
    """The smallest of all."""

    __slots__ = ()
    join = staticmethod(torch.minimum)


Figures = dict[str, Figure]
LossSum = tuple[Tensor, dict[str, Tensor]]  # what the loss seams give: a sum over reply tokens, and sums for the log
SQUARED_WEIGHT = "importance/square"  # logged as the effective sample size
EXTREMES: dict[str, type[Figure]] = {"ratio_max": Largest, "ratio_min": Smallest}  # of `functional.policy_loss`


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """The policy's loss of one micro-batch.

    Attributes:
        total: the sum that is differentiated: surrogate, KL and entropy.
        figures: for the log.
        distance: summed approximate KL(old || new) of the micro-batch's tokens, without gradient.
    """

    total: Tensor
    figures: Figures
    distance: Tensor


def loss_figures(name: str, loss: LossSum, batch: Experience) -> Figures:
    """`name/loss`, a mean over what the loss is divided by, and each of the seam's sums as a mean over `tokens` (its
    own among the sums, or else those learnt from). A seam may give a `Figure` in place of a sum."""
    loss_sum, sums = loss
    tokens = sums.get("tokens", batch.mask_NS.sum())
    found: Figures = {f"{name}/loss": Mean(loss_sum.detach(), batch.divisor())}
    for key, amount in sums.items():
        if key != "tokens":
            kind = EXTREMES.get(key, Mean)
            found[f"{name}/{key}"] = amount if isinstance(amount, Figure) else kind(amount, tokens)
    return found


def with_importance(batch: Experience, config: PPOConfig) -> tuple[Experience, Figures]:
    """The micro-batch with weights for a sampler which is not quite the policy, where that is asked for."""
    if batch.sampler_logps_NS is None:
        return batch, {}
    level, cap = config.importance_sampling_correction, config.importance_sampling_cap
    weights_BS, sums = functional.importance_weights(
        batch.policy_logps_NS, batch.sampler_logps_NS, batch.mask_NS, level, cap
    )
    figures: Figures = {f"importance/{name}": Mean(sums[name], sums["tokens"]) for name in ("mean", "truncated")}
    kept_BS = keep(weights_BS, batch.mask_NS)
    figures["importance/max"] = Largest(kept_BS.max(), sums["tokens"])
    figures[SQUARED_WEIGHT] = Mean(kept_BS.square().sum(), sums["tokens"])
    return replace(batch, importance_NS=weights_BS), figures


def policy_terms(
    surrogate: LossSum, logps: ReplyLogprobs, batch: Experience, config: PPOConfig, kl_coef: float
) -> PolicyTerms:
    """Everything that the policy is moved by but for ptx.

    Args:
        surrogate: of the seam.
        logps: what the policy in training says; carries the gradient. Its entropy is needed where `entropy_coef` is not
            0.
    """
    total, figures = surrogate[0], loss_figures("policy", surrogate, batch)
    if config.entropy_coef > 0:
        mask_BS = batch.tokens.mask_NS
        figures["entropy/token"] = Mean(functional.masked_sum(logps.entropy.detach(), mask_BS), mask_BS.sum())
        entropy_BS = keep(logps.entropy, batch.mask_NS)
        total = total - config.entropy_coef * weighted(entropy_BS, batch.weights_NS, batch.mask_NS).sum()
    if config.kl_in == "loss":
        kl = functional.kl_loss(
            logps.full, batch.ref_logps_NS, batch.mask_NS, config.kl_estimator, weights_BT=batch.weights_NS
        )
        figures |= loss_figures("kl_loss", kl, batch)
        total = total + kl_coef * kl[0]
    log_ratio_BS = logps.ratio.detach() - batch.old_logps_NS
    distance = functional.masked_sum(torch.expm1(log_ratio_BS) - log_ratio_BS, batch.mask_NS)
    return PolicyTerms(total, figures, distance)
