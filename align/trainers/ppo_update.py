"""The learning half of PPO: minibatches, the three losses, and the optimizer steps of policy and critic.

Losses are sums over reply tokens divided by the token count of the minibatch over all ranks; under DDP, which averages
gradients over ranks, they are multiplied by the number of ranks. So gradients do not depend on micro-batch size,
padding or ranks. The ptx gradient (see `ptx.py`) is accumulated into the policy's same optimizer step.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from align import functional
from align.recipe.ppo import PPOConfig
from align.runs.errors import TrainingError
from align.runs.seeding import derive
from align.trainers import ppo_state
from align.trainers.experience import Experience, TokenBatch
from align.trainers.forward import reply_logprobs, state_values
from align.trainers.iterations import IterationLoop
from align.trainers.minibatches import plan_minibatches, shuffled
from align.trainers.optimization import TrainedModel, mark_last, total_norm
from align.trainers.ppo_metrics import UpdateStats
from align.trainers.ptx import PtxStream, ptx_nll_sum
from rollouts.protocol import Engine


class PPOUpdate(IterationLoop):
    """`update(experience)` and the seams it is built from; `PPOTrainer` adds where experience comes from."""

    config: PPOConfig
    policy: TrainedModel
    critic: TrainedModel
    reference: nn.Module
    engine: Engine
    ptx: PtxStream | None
    seed: int
    rank: int
    world_size: int
    responses: int
    optimizer_steps: int
    policy_version: int

    def minibatches(self, tokens: TokenBatch, epoch: int) -> list[tuple[Tensor, list[Tensor]]]:
        """This epoch's minibatches: global rows, and this rank's rows by micro-batch."""
        order = shuffled(self.responses, derive(self.seed, "shuffle", self.state.global_step, epoch))
        config = self.config
        return plan_minibatches(
            order, tokens.lengths_N.cpu(), config.num_mini_batches, config.micro_batch_size, self.rank, self.world_size
        )

    @property
    def _logs_now(self) -> bool:
        step = self.state.global_step + 1
        return step == 1 or step % self.config.logging_steps == 0

    @property
    def warming_up(self) -> bool:
        """Whether the coming optimizer step is the critic's alone."""
        return self.optimizer_steps < self.config.critic_warmup_steps

    def update(self, experience: Experience) -> dict[str, float]:
        """`num_ppo_epochs` passes of `num_mini_batches` optimizer steps; returns their mean statistics.

        Raises:
            TrainingError: a loss or gradient that is not finite; the models are as before that step, and saved.
        """
        stats, version = UpdateStats(), self.policy_version
        for epoch in range(self.config.num_ppo_epochs):
            for rows_B, micros in self.minibatches(experience.tokens, epoch):
                num_tokens = int(experience.mask_NS[rows_B].sum())
                batches = [experience.rows(micro) for micro in micros]
                trained = {"value": self.critic}
                self._critic_gradient(batches, num_tokens, stats)
                if not self.warming_up:
                    trained["policy"] = self.policy
                    measure = self._logs_now and self.policy_version == version
                    self._policy_gradient(batches, num_tokens, stats, average=self.ptx is None or measure)
                    if self.ptx is not None:
                        self._add_ptx_gradient(stats, measure)
                self._step(trained, stats)
        if self.policy_version != version:
            self.engine.update_weights(self.policy.raw.named_parameters(), self.policy_version)
        return stats.over_ranks(self.accelerator)

    def value_loss(self, values_BS: Tensor, batch: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over reply tokens, and sums for the log."""
        return functional.value_loss(
            values_BS, batch.old_values_NS, batch.returns_NS, batch.mask_NS, self.config.cliprange_value
        )

    def policy_loss(self, logps_BS: Tensor, batch: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over reply tokens, and sums for the log."""
        return functional.policy_loss(
            logps_BS, batch.old_logps_NS, batch.advantages_NS, batch.mask_NS, self.config.cliprange
        )

    def ptx_loss(self, input_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Sum over the blocks' tokens of their negative log-likelihood under the policy."""
        return ptx_nll_sum(self.policy.module, input_ids_BT, mask_BT)

    def _critic_gradient(self, batches: list[Experience], num_tokens: int, stats: UpdateStats) -> None:
        scale = self.config.vf_coef * self.world_size / num_tokens  # DDP averages over ranks
        for is_last, batch in mark_last(batches):
            with self.critic.gradients_stay_here(unless=is_last):
                loss_sum, sums = self.value_loss(state_values(self.critic.module, batch.tokens), batch)
                self.accelerator.backward(loss_sum * scale)
            stats.add("value", loss_sum, sums)

    def _policy_gradient(self, batches: list[Experience], num_tokens: int, stats: UpdateStats, average: bool) -> None:
        """Accumulate PPO's gradient; `average` it over ranks now, or leave that to the ptx gradient that follows."""
        for is_last, batch in mark_last(batches):
            with self.policy.gradients_stay_here(unless=is_last and average):
                logps_BS = reply_logprobs(self.policy.module, batch.tokens, self.config.rollout.temperature)
                loss_sum, sums = self.policy_loss(logps_BS, batch)
                self.accelerator.backward(loss_sum * (self.world_size / num_tokens))
            stats.add("policy", loss_sum, sums)

    def _add_ptx_gradient(self, stats: UpdateStats, measure: bool) -> None:
        """Accumulate the ptx gradient; with `measure`, log its norm relative to PPO's (costs a copy).

        Averaging twice over ranks is right: what was averaged before is equal on all of them and stays as it is.
        """
        before = self.policy.gradients() if measure else []
        micros, num_tokens = self.ptx.next(self.rank, self.world_size)
        for is_last, (ids_BT, mask_BT) in mark_last(micros):
            ids_BT, mask_BT = ids_BT.to(self.accelerator.device), mask_BT.to(self.accelerator.device)
            with self.policy.gradients_stay_here(unless=is_last):
                loss_sum = self.ptx_loss(ids_BT, mask_BT)
                self.accelerator.backward(loss_sum * (self.config.ptx_coef * self.world_size / num_tokens))
            stats.add("ptx", loss_sum, {"tokens": mask_BT[:, 1:].sum().to(loss_sum)})
        if measure:
            added = [new - old for new, old in zip(self.policy.gradients(), before, strict=True)]
            stats.norm("ptx/grad_norm_ratio", total_norm(added) / total_norm(before).clamp(min=1e-12))

    def _step(self, trained: dict[str, TrainedModel], stats: UpdateStats) -> None:
        """Clip and step what was trained, all or, when a gradient is not finite, nothing."""
        norms = {name: model.clip() for name, model in trained.items()}
        broken = [name for name, norm in norms.items() if not torch.isfinite(norm)]
        if broken:
            self.policy.drop_gradients()
            self.critic.drop_gradients()
            self._stop_broken(f"the gradient of the {' and the '.join(broken)} loss is not finite")
        for name, model in trained.items():
            model.step()
            stats.norm(f"{name}/grad_norm", norms[name])
        self.optimizer_steps += 1
        self.policy_version += "policy" in trained

    def _stop_broken(self, what: str) -> NoReturn:
        """Save what there is, apart from the sound checkpoints (it lies inside an iteration), and stop."""
        folder = ppo_state.save(self, self.output_dir / "failed")
        raise TrainingError(
            f"{what} in iteration {self.state.global_step + 1}; the models as they were before that step are saved "
            f"in {folder}: continue from an earlier checkpoint with a lower learning rate, or look at samples.jsonl"
        )
