"""What the experience of an iteration is made from: the passes of the models over its replies, what the engine told of
them, and which of them count.

Every rank computes its share of the passes; rewards and advantages are then computed by all ranks over the whole
global batch (`PPOTrainer.make_experience`), so that running statistics and whitening are global by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from align import functional
from align.recipe.batch import FULL_KL_REPLIES
from align.recipe.ppo_section import PPOConfig
from align.runtime.devices import index_on
from align.trainers.offload import Offload
from align.trainers.optimization import TrainedModel
from align.trainers.ppo.forward import (
    ReplyLogprobs,
    reply_distribution,
    reply_full_kl,
    reply_logprobs,
    state_values,
)
from align.trainers.ppo.guards import Together, together
from align.trainers.ppo.kept import KeptPass, LatePass
from align.trainers.ppo.minibatches import Minibatches, shuffled
from align.trainers.ppo.types import Samples, SupportTensor, TokenBatch
from reward.running import RunningMean, RunningMeanStd, RunningStats
from rollouts.errors import RolloutError


def running_stats(kind: str) -> RunningStats:
    """What `normalize_reward` names; `none` counts a mean that nobody asks for."""
    return RunningMeanStd(shift=kind == "running_mean_std") if kind.endswith("std") else RunningMean()


@dataclass(frozen=True, slots=True)
class Passes:
    """What the models say of the replies before the update; every tensor (N, S), nats and values.

    Attributes:
        ref: the reference over the full vocabulary. full, entropy: the policy, likewise.
        ratio: the policy over the sampler's support, where the ratio is over that.
        values: the critic's, where there is one.
        kept: the policy's pass that the update may take up.
        late: what fills full, entropy and ratio in the update, where the policy was not asked before; zeros until then.
    """

    ref: Tensor
    full: Tensor
    entropy: Tensor
    ratio: Tensor | None = None
    values: Tensor | None = None
    kept: KeptPass | None = None
    late: LatePass | None = None


def names_of(support: SupportTensor | None) -> tuple[str, ...]:
    """What of `ReplyLogprobs` an iteration keeps of the policy."""
    return ("full", "entropy") if support is None else ("full", "entropy", "ratio")


class ModelPasses:
    """The passes without gradients over an iteration's replies; has no state of its own."""

    def __init__(
        self,
        policy: TrainedModel,
        critic: TrainedModel | None,
        reference: nn.Module,
        *,
        config: PPOConfig,
        offload: Offload,
        accelerator: Accelerator,
    ):
        self.policy, self.critic, self.reference = policy, critic, reference
        self.config, self.offload, self.accelerator = config, offload, accelerator

    def run(
        self,
        tokens: TokenBatch,
        support: SupportTensor | None,
        minibatches: Minibatches,
        together: Together = together,
        keeps: bool = False,
        late: bool = False,
    ) -> Passes:
        """Of all ranks' replies, each rank its share, on the very micro-batches of the first epoch: so the first
        minibatch's ratio is 1. Collective.

        Args:
            keeps: whether the policy's gradient comes next: its pass over the first micro-batch is then the last,
                and kept where it may be.
            late: leave the policy to that.
        """
        keeps = keeps and not late and self._may_keep()
        with self.offload.here("reference"):
            whole, kept = together(lambda: self._own(tokens, support, minibatches, keeps, late))
        if self.accelerator.num_processes > 1:  # each row was computed by one rank and is 0 elsewhere
            whole = {name: self.accelerator.reduce(tensor, "sum") for name, tensor in whole.items()}
        if late:
            later = LatePass(names_of(support), whole["ref"])
            return Passes(**whole, **later.told, late=later)
        return Passes(**whole, kept=KeptPass(tokens, *kept, self.policy.parameters) if keeps else None)

    def _may_keep(self) -> bool:
        """Whether a pass may keep its graph: not where ranks count on passes of gradients in a row, nor where the
        reference would stand beside the graph."""
        return self.accelerator.num_processes == 1 and "reference" not in self.offload.parts

    def full_kl(self, tokens: TokenBatch, seed: int, together: Together = together) -> float:
        """`kl/full_token`: exact KL(policy || reference), nats a token, over the tokens of a few replies drawn at
        random. Costs two forwards of these; every rank makes them on the same replies, so that the figure does not
        depend on the number of ranks."""
        batch = tokens.rows(shuffled(len(tokens.lengths_N), seed)[:FULL_KL_REPLIES])

        def work() -> float:
            kl_BS = reply_full_kl(self.policy.module, self.reference, batch, self.config.rollout.temperature)
            return float(functional.masked_mean(kl_BS, batch.mask_NS))

        with self.offload.here("reference"):
            return together(work)

    @torch.no_grad()
    def _own(
        self, tokens: TokenBatch, support: SupportTensor | None, minibatches: Minibatches, keeps: bool, late: bool
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ReplyLogprobs | None]]:
        """This rank's rows of `Passes`, by name, 0 elsewhere; and the rows of the first micro-batch with what the
        policy said of them, which has a graph where it `keeps` that."""
        temperature, states = self.config.rollout.temperature, tokens.input_ids_NT.shape[1] - 1
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
        first_B, *others = (rows_B for _, micros in minibatches(tokens, 0) for rows_B in micros)
        policy = None
        for rows_B in (*others, first_B):
            batch = tokens.rows(rows_B)
            found = {"ref": reply_logprobs(self.reference, batch, temperature)}
            if self.critic is not None:
                found["values"] = state_values(self.critic.module, batch)
            if not late:
                cut = None if support is None else support.rows(rows_B, batch.input_ids_NT.shape[1] - 1)
                with torch.set_grad_enabled(keeps and rows_B is first_B):
                    learns = self.config.entropy_coef > 0
                    policy = reply_distribution(
                        self.policy.module, batch, temperature, support=cut, entropy=True, entropy_gradient=learns
                    )
                found |= {name: getattr(policy, name) for name in names_of(support)}
            for name, tensor in found.items():
                parts.setdefault(name, []).append((rows_B, tensor.detach()))
        shape = (len(tokens.lengths_N), states)
        return {name: scatter_rows(pieces, shape) for name, pieces in parts.items()}, (first_B, policy)


def support_of(samples: Samples, tokens: TokenBatch, config: PPOConfig) -> SupportTensor | None:
    """What the sampler could draw, where the ratio is over that. Raises RolloutError where the engine did not tell."""
    if config.policy_support == "full":
        return None
    try:
        return SupportTensor.from_supports(samples.supports, tokens)
    except ValueError as problem:
        raise RolloutError(f"ppo.policy_support = nucleus: {problem}; use an engine that records it") from problem


def sampler_logps(samples: Samples, tokens: TokenBatch, config: PPOConfig) -> Tensor | None:
    """logps_NS as the engine computed them, where they are corrected for. Raises RolloutError where it did not tell."""
    if config.importance_sampling_correction == "none":
        return None
    missing = [row for row, logps in enumerate(samples.engine_logps) if logps is None]
    if missing:
        raise RolloutError(
            f"ppo.importance_sampling_correction: the engine gave no log-probabilities for reply {missing[0]}; use "
            "an engine that does, or switch the correction off"
        )
    return tokens.on_actions(samples.engine_logps)


def counted_replies(judged_N: Tensor, finished_N: Tensor, config: PPOConfig) -> Tensor | None:
    """Which replies are learnt from: those that were judged and, with `mask_truncated_completions`, that ended; None
    for all."""
    counts_N = finished_N if config.mask_truncated_completions else None
    if not judged_N.all():
        counts_N = judged_N if counts_N is None else judged_N & counts_N
    return counts_N


def scatter_rows(parts: Sequence[tuple[Tensor, Tensor]], shape: tuple[int, int]) -> Tensor:
    """Put `(rows_B, values_Bs)` pieces of own widths into one zero tensor of `shape` (N, S)."""
    whole_NS = parts[0][1].new_zeros(shape)
    for rows_B, values_Bs in parts:
        whole_NS[index_on(whole_NS.device, rows_B), : values_Bs.shape[1]] = values_Bs
    return whole_NS
