"""From sampled replies to what an update learns from: the passes of the models, shaped rewards, advantages.

Every rank computes its share of the passes; rewards and advantages are then computed by all ranks over the whole
global batch, so that running statistics and whitening are global by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from align import functional
from align.recipe.ppo_section import PPOConfig
from align.trainers.offload import Offload
from align.trainers.optimization import TrainedModel
from align.trainers.ppo.forward import reply_distribution, reply_full_kl, reply_logprobs, state_values
from align.trainers.ppo.guards import together
from align.trainers.ppo.metrics import engine_metrics, rollout_metrics
from align.trainers.ppo.minibatches import Minibatches, shuffled
from align.trainers.ppo.types import Experience, Samples, SupportTensor, TokenBatch
from reward.running import RunningMean, RunningMeanStd, RunningStats
from rollouts.errors import RolloutError


def running_stats(kind: str) -> RunningStats:
    """What `normalize_reward` names; `none` counts a mean that nobody asks for."""
    return RunningMeanStd(shift=kind == "running_mean_std") if kind.endswith("std") else RunningMean()


@dataclass(frozen=True, slots=True)
class Shaping:
    """The seams between a score and an advantage; see the methods of `PPOTrainer` that they are."""

    penalize: Callable[[Tensor, Tensor, Tensor], Tensor]
    normalize: Callable[[Tensor, Tensor | None], Tensor]
    shape: Callable[[Tensor, Tensor, Tensor], Tensor]
    advantages: Callable[[Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor | None, float]]


@dataclass(frozen=True, slots=True)
class Passes:
    """What the models say of the replies before the update; every tensor (N, S), nats and values.

    Attributes:
        ref: the reference over the full vocabulary. full, entropy: the policy, likewise.
        ratio: the policy over the sampler's support, where the ratio is over that.
        values: the critic's, where there is one.
    """

    ref: Tensor
    full: Tensor
    entropy: Tensor
    ratio: Tensor | None = None
    values: Tensor | None = None


class ExperienceMaker:
    """Makes the experience of a global batch; has no state of its own."""

    def __init__(
        self,
        policy: TrainedModel,
        critic: TrainedModel | None,
        reference: nn.Module,
        config: PPOConfig,
        pad_id: int,
        offload: Offload,
        accelerator: Accelerator,
    ):
        self.policy, self.critic, self.reference, self.config = policy, critic, reference, config
        self.pad_id, self.offload, self.accelerator = pad_id, offload, accelerator

    def make(
        self, samples: Samples, scores_N: Tensor, shaping: Shaping, minibatches: Minibatches
    ) -> tuple[Experience, dict[str, float]]:
        """The experience of all ranks' replies and its metrics; every rank computes its share of the passes. A reply
        whose score is NaN teaches nothing (`on_reward_error: mask`)."""
        config, device = self.config, self.accelerator.device
        generations = config.rollout.num_generations
        tokens = TokenBatch.from_ids(samples.prompt_ids, samples.reply_ids, self.pad_id, generations).to(device)
        support = self._support(samples, tokens)
        with self.offload.here("reference"):
            passes = self._passes(tokens, support, minibatches)
        finished_N, mask_NS = torch.tensor(samples.finished, device=device), tokens.mask_NS
        scores_N, judged_N = scores_N.to(device), ~scores_N.to(device).isnan()
        counts_N = finished_N if config.mask_truncated_completions else None
        if not judged_N.all():
            counts_N = judged_N if counts_N is None else judged_N & counts_N
        learnt_NS = mask_NS if counts_N is None else mask_NS & counts_N[:, None]

        penalized_N = shaping.penalize(scores_N.where(judged_N, 0.0), finished_N, mask_NS.sum(1))
        normalized_N = shaping.normalize(penalized_N, counts_N)
        kl_NS = functional.kl_estimate(passes.full, passes.ref, config.kl_estimator)
        rewards_NS = shaping.shape(normalized_N, kl_NS, learnt_NS)
        advantages_NS, returns_NS, deviation = shaping.advantages(rewards_NS, passes.values, learnt_NS)

        by_reply = config.loss_aggregation == "sequence"
        experience = Experience(
            tokens=tokens,
            mask_NS=learnt_NS,
            scores_N=scores_N,
            normalized_N=normalized_N,
            old_logps_NS=passes.full if passes.ratio is None else passes.ratio,
            ref_logps_NS=passes.ref,
            old_values_NS=passes.values,
            rewards_NS=rewards_NS,
            advantages_NS=advantages_NS,
            returns_NS=returns_NS,
            full_logps_NS=None if passes.ratio is None else passes.full,
            sampler_logps_NS=self._sampler_logps(samples, tokens),
            weights_NS=functional.token_weights(learnt_NS, "sequence") if by_reply else None,
            support=support,
        )
        metrics = rollout_metrics(samples, experience, passes.entropy, deviation) | engine_metrics(samples, experience)
        if config.on_reward_error == "mask":
            metrics["reward/failed"] = float((~judged_N).sum())
        return experience, metrics

    def full_kl(self, tokens: TokenBatch, seed: int) -> float:
        """`kl/full_token`: exact KL(policy || reference), nats a token, over the tokens of `micro_batch_size` replies
        drawn at random. Costs two forwards of one micro-batch; every rank makes them on the same replies, so that the
        figure does not depend on the number of ranks."""
        config = self.config
        batch = tokens.rows(shuffled(len(tokens.lengths_N), seed)[: config.micro_batch_size])

        def work() -> float:
            kl_BS = reply_full_kl(self.policy.module, self.reference, batch, config.rollout.temperature)
            return float(functional.masked_mean(kl_BS, batch.mask_NS))

        with self.offload.here("reference"):
            return together(work)

    def _support(self, samples: Samples, tokens: TokenBatch) -> SupportTensor | None:
        if self.config.policy_support == "full":
            return None
        try:
            return SupportTensor.from_supports(samples.supports, tokens)
        except ValueError as problem:
            raise RolloutError(f"ppo.policy_support = nucleus: {problem}; use an engine that records it") from problem

    def _sampler_logps(self, samples: Samples, tokens: TokenBatch) -> Tensor | None:
        if self.config.importance_sampling_correction == "none":
            return None
        missing = [row for row, logps in enumerate(samples.engine_logps) if logps is None]
        if missing:
            raise RolloutError(
                f"ppo.importance_sampling_correction: the engine gave no log-probabilities for reply {missing[0]}; use "
                "an engine that does, or switch the correction off"
            )
        return tokens.on_actions(samples.engine_logps)

    def _passes(self, tokens: TokenBatch, support: SupportTensor | None, minibatches: Minibatches) -> Passes:
        """On the very micro-batches of the first epoch, so that the first minibatch's ratio is 1."""
        whole = together(lambda: self._own_passes(tokens, support, minibatches))
        if self.accelerator.num_processes > 1:  # each row was computed by one rank and is 0 elsewhere
            whole = {name: self.accelerator.reduce(tensor, "sum") for name, tensor in whole.items()}
        return Passes(**whole)

    @torch.no_grad()
    def _own_passes(
        self, tokens: TokenBatch, support: SupportTensor | None, minibatches: Minibatches
    ) -> dict[str, Tensor]:
        """This rank's rows of `Passes`, by name; 0 elsewhere."""
        temperature, states = self.config.rollout.temperature, tokens.input_ids_NT.shape[1] - 1
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for rows_B in (rows_B for _, micros in minibatches(tokens, 0) for rows_B in micros):
            batch = tokens.rows(rows_B)
            found = {"ref": reply_logprobs(self.reference, batch, temperature)}
            if self.critic is not None:
                found["values"] = state_values(self.critic.module, batch)
            cut = None if support is None else support.rows(rows_B, batch.input_ids_NT.shape[1] - 1)
            policy = reply_distribution(self.policy.module, batch, temperature, support=cut, entropy=True)
            found |= {"full": policy.full, "entropy": policy.entropy}
            found |= {} if support is None else {"ratio": policy.ratio}
            for name, tensor in found.items():
                parts.setdefault(name, []).append((rows_B, tensor))
        shape = (len(tokens.lengths_N), states)
        return {name: scatter_rows(pieces, shape) for name, pieces in parts.items()}


def scatter_rows(parts: Sequence[tuple[Tensor, Tensor]], shape: tuple[int, int]) -> Tensor:
    """Put `(rows_B, values_Bs)` pieces of own widths into one zero tensor of `shape` (N, S)."""
    whole_NS = parts[0][1].new_zeros(shape)
    for rows_B, values_Bs in parts:
        whole_NS[rows_B, : values_Bs.shape[1]] = values_Bs
    return whole_NS
