"""What stands beside the clipped surrogate in the policy's loss: the KL and entropy terms, and the weights that correct
for a sampler which is not quite the policy."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from align import functional
from align.functional.masked import keep
from align.functional.ppo import weighted
from align.recipe.ppo_section import PPOConfig
from align.trainers.experience import Experience
from align.trainers.forward import ReplyLogprobs
from align.trainers.ppo_metrics import UpdateStats


def weighed(batch: Experience, config: PPOConfig, stats: UpdateStats) -> Experience:
    """The micro-batch with importance weights where asked for."""
    if batch.sampler_logps_NS is None:
        return batch
    level, cap = config.importance_sampling_correction, config.importance_sampling_cap
    weights_BS, sums = functional.importance_weights(
        batch.policy_logps_NS, batch.sampler_logps_NS, batch.mask_NS, level, cap
    )
    stats.add("importance", None, sums)
    return replace(batch, importance_NS=weights_BS)


def regularized(
    loss_sum: Tensor, policy: ReplyLogprobs, batch: Experience, config: PPOConfig, kl_coef: float, stats: UpdateStats
) -> Tensor:
    """The surrogate's sum plus `kl_coef` times the KL term (`kl_in: loss`), minus `entropy_coef` times the entropy."""
    if policy.entropy is not None:
        entropy = functional.masked_sum(policy.entropy.detach(), batch.tokens.mask_NS)
        stats.add("entropy", None, {"token": entropy, "tokens": batch.tokens.mask_NS.sum()})
        if config.entropy_coef:
            entropy_BS = keep(policy.entropy, batch.mask_NS)
            loss_sum = loss_sum - config.entropy_coef * weighted(entropy_BS, batch.weights_NS, batch.mask_NS).sum()
    if config.kl_in == "loss":
        kl_sum, sums = functional.kl_loss(
            policy.full,
            batch.ref_logps_NS,
            batch.mask_NS,
            config.kl_estimator,
            weights_BT=batch.weights_NS,
        )
        stats.add("kl_loss", kl_sum, sums | {"weight": batch.divisor()})
        loss_sum = loss_sum + kl_coef * kl_sum
    return loss_sum
