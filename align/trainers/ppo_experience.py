"""From sampled replies to what an update learns from: the passes of the four models, shaped rewards, advantages.

Every rank computes its share of the passes; rewards and advantages are then computed by all ranks over the whole
global batch, so that running statistics and whitening are global by construction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from align import functional
from align.data.prompts import PromptSampler
from align.trainers.controllers import KLController
from align.trainers.experience import Experience, Samples, TokenBatch, scatter_rows
from align.trainers.forward import reply_distribution, reply_logprobs, state_values
from align.trainers.ppo_metrics import engine_metrics, full_kl, rollout_metrics, staleness
from align.trainers.ppo_update import PPOUpdate
from align.trainers.support import SupportTensor
from reward.running import RunningMean, RunningMeanStd, RunningStats
from rollouts.errors import RolloutError


def running_stats(kind: str) -> RunningStats:
    """What `normalize_reward` names; `none` counts a mean that nobody asks for."""
    return RunningMeanStd(shift=kind == "running_mean_std") if kind.endswith("std") else RunningMean()


class PPOExperience(PPOUpdate):
    """`make_experience(samples, scores_N)` and the seams it is built from."""

    tokenizer: Any
    pad_id: int
    sampler: PromptSampler
    reward_stats: RunningStats
    kl: KLController

    def penalize_scores(self, scores_N: Tensor, finished_N: Tensor, lengths_N: Tensor) -> Tensor:
        """Scores after the penalties for a missing end and for length, in the reward's own unit."""
        config = self.config
        return functional.penalize(
            scores_N,
            finished_N,
            lengths_N,
            missing_eos_penalty=config.missing_eos_penalty,
            length_penalty=config.length_penalty,
            length_penalty_free=config.length_penalty_free,
        )

    def normalize_scores(self, scores_N: Tensor, counts_N: Tensor | None = None) -> Tensor:
        """Running mean, deviation or both (this whole batch counted in first, where `counts_N` says so), then clip."""
        if self.config.normalize_reward != "none":
            self.reward_stats.update(scores_N if counts_N is None else scores_N[counts_N])
            scores_N = self.reward_stats.normalize(scores_N)
        limit = self.config.reward_clip_range
        return scores_N if limit is None else scores_N.clamp(-limit, limit)

    def shape_rewards(self, normalized_N: Tensor, kl_NS: Tensor, mask_NS: Tensor) -> Tensor:
        """rewards_NS: the score on the last reply token, minus the KL coefficient times the KL of each token."""
        coef = self.kl.coef if self.config.kl_in == "reward" else 0.0
        return functional.shape_rewards(normalized_N, kl_NS, mask_NS, coef)

    def compute_advantages(
        self, rewards_NS: Tensor, values_NS: Tensor, mask_NS: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        """(advantages_NS, returns_NS, standard deviation before whitening), over the whole global batch.

        With `critic_lam` the returns have a lambda of their own ("decoupled GAE": Yue et al. 2025, VAPO, section 3).
        """
        config = self.config
        advantages_NS, returns_NS = functional.gae(rewards_NS, values_NS, mask_NS, config.gamma, config.lam)
        if config.critic_lam is not None and config.critic_lam != config.lam:
            _, returns_NS = functional.gae(rewards_NS, values_NS, mask_NS, config.gamma, config.critic_lam)
        moments = functional.Moments.of(advantages_NS, mask_NS)
        if config.whiten_advantages:
            advantages_NS = functional.whiten(advantages_NS, mask_NS, moments.mean, moments.var)
        return advantages_NS, returns_NS, float(moments.var.sqrt())

    def make_experience(self, samples: Samples, scores_N: Tensor) -> tuple[Experience, dict[str, float]]:
        """The experience of the global batch and its metrics; every rank computes its share of the passes. A reply
        whose score is NaN teaches nothing (`on_reward_error: mask`)."""
        device, config = self.accelerator.device, self.config
        tokens = TokenBatch.from_ids(samples.prompt_ids, samples.reply_ids, self.pad_id).to(device)
        support = self._support(samples, tokens)
        with self.offload.here("reference"):
            found = self._passes(tokens, support)
        finished_N, mask_NS = torch.tensor(samples.finished, device=device), tokens.mask_NS
        scores_N, judged_N = scores_N.to(device), ~scores_N.to(device).isnan()
        counts_N = finished_N if config.mask_truncated_completions else None
        if not judged_N.all():
            counts_N = judged_N if counts_N is None else judged_N & counts_N
        learnt_NS = mask_NS if counts_N is None else mask_NS & counts_N[:, None]
        penalized_N = self.penalize_scores(scores_N.where(judged_N, 0.0), finished_N, mask_NS.sum(1))
        normalized_N = self.normalize_scores(penalized_N, counts_N)
        kl_NS = functional.kl_estimate(found["full"], found["ref"], config.kl_estimator)
        rewards_NS = self.shape_rewards(normalized_N, kl_NS, learnt_NS)
        advantages_NS, returns_NS, std = self.compute_advantages(rewards_NS, found["values"], learnt_NS)
        by_reply = config.loss_aggregation == "sequence"
        experience = Experience(
            tokens,
            learnt_NS,
            scores_N,
            normalized_N,
            found.get("ratio", found["full"]),
            found["ref"],
            found["values"],
            rewards_NS,
            advantages_NS,
            returns_NS,
            full_logps_NS=found["full"] if support is not None else None,
            sampler_logps_NS=self._sampler_logps(samples, tokens),
            weights_NS=functional.token_weights(learnt_NS, "sequence") if by_reply else None,
            support=support,
        )
        metrics = rollout_metrics(samples, experience, found["entropy"], std)
        metrics["kl_coef"] = self.kl.coef
        if config.on_reward_error == "mask":
            metrics["reward/failed"] = float((~judged_N).sum())
        metrics |= engine_metrics(samples, experience) | staleness(samples, self.policy_version)
        if self._logs_now:
            with self.offload.here("reference"):
                metrics["kl/full_token"] = self.together(lambda: full_kl(self, tokens))
        return experience, metrics

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

    def _passes(self, tokens: TokenBatch, support: SupportTensor | None = None) -> dict[str, Tensor]:
        """By name, (N, S): `full` and `entropy` of the policy, `ratio` (with a support), `ref`, `values`; on the very
        micro-batches of the first epoch."""
        whole = self.together(lambda: self._own_passes(tokens, support))
        if self.world_size == 1:
            return whole  # else each row was computed by one rank and is 0 elsewhere
        return {name: self.accelerator.reduce(tensor, "sum") for name, tensor in whole.items()}

    @torch.no_grad()
    def _own_passes(self, tokens: TokenBatch, support: SupportTensor | None) -> dict[str, Tensor]:
        """`_passes` of this rank's rows, 0 elsewhere."""
        temperature, states = self.config.rollout.temperature, tokens.input_ids_NT.shape[1] - 1
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for _, micros in self.minibatches(tokens, epoch=0):
            for rows_B in micros:
                batch = tokens.rows(rows_B)
                found = {
                    "ref": reply_logprobs(self.reference, batch, temperature),
                    "values": state_values(self.critic.module, batch),
                }
                cut = None if support is None else support.rows(rows_B, batch.input_ids_NT.shape[1] - 1)
                policy = reply_distribution(self.policy.module, batch, temperature, support=cut, entropy=True)
                found |= {"full": policy.full, "entropy": policy.entropy}
                found |= {"ratio": policy.ratio} if support is not None else {}
                for name, tensor in found.items():
                    parts.setdefault(name, []).append((rows_B, tensor))
        shape = (len(tokens.lengths_N), states)
        return {name: scatter_rows(pieces, shape) for name, pieces in parts.items()}
