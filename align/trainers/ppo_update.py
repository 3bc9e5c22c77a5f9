"""The learning half of PPO: minibatches, the three losses, and the optimizer steps of policy and critic.

Losses are sums over reply tokens divided by the token count of the minibatch over all ranks (`loss_aggregation:
sequence`: means over each reply's tokens, divided by the number of replies); under DDP, which averages gradients over
ranks, they are multiplied by the number of ranks. So gradients do not depend on micro-batch size, padding or ranks. The
ptx gradient (see `ptx.py`) is accumulated into the policy's same optimizer step.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from align import functional
from align.recipe.ppo_section import PPOConfig
from align.runs.errors import SavedError, TrainingError
from align.runs.seeding import derive
from align.trainers import ppo_state
from align.trainers.average import WeightAverage
from align.trainers.controllers import KLController, PtxController
from align.trainers.engine_sync import push_weights
from align.trainers.experience import Experience, TokenBatch
from align.trainers.forward import reply_distribution, state_values
from align.trainers.iterations import IterationLoop
from align.trainers.minibatches import plan_minibatches, shuffled
from align.trainers.offload import Offload
from align.trainers.optimization import TrainedModel, mark_last, total_norm
from align.trainers.overlap import Ahead
from align.trainers.policy_terms import regularized, weighed
from align.trainers.ppo_metrics import UpdateStats
from align.trainers.ptx import PtxStream, ptx_nll_sum
from rollouts.protocol import Engine


class PPOUpdate(IterationLoop):
    """`update(experience)` and the seams it is built from; `PPOTrainer` adds where experience comes from."""

    config: PPOConfig
    policy: TrainedModel
    critic: TrainedModel
    reference: nn.Module
    offload: Offload
    engine: Engine
    ahead: Ahead
    ptx: PtxStream | None
    ptx_coef: PtxController
    kl: KLController
    ema: WeightAverage | None
    seed: int
    rank: int
    world_size: int
    responses: int
    optimizer_steps: int
    policy_version: int
    updating: bool

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

        With `target_kl` the first minibatch on which the policy is already further away than that ends the update.

        Raises:
            TrainingError: a gradient that is not finite (unless such steps are skipped); the models are as before that
                step, and saved. Or the engine does not take the new weights; the models are saved then, too.
        """
        stats, version = UpdateStats(), self.policy_version
        steps = [
            step for epoch in range(self.config.num_ppo_epochs) for step in self.minibatches(experience.tokens, epoch)
        ]
        for at, (rows_B, micros) in enumerate(steps):
            divisor = max(1, experience.divisor(rows_B))
            batches = [experience.rows(micro) for micro in micros]
            trained = {"value": self.critic}
            self._critic_gradient(batches, divisor, stats)
            if not self.warming_up:
                trained["policy"] = self.policy
                measure = self.policy_version == version and (self._logs_now or self.ptx_coef.automatic)
                # FSDP2 keeps what is not averaged yet where it cannot be dropped
                average = self.ptx is None or measure or self.config.target_kl is not None
                distance = self._policy_gradient(batches, divisor, stats, average)
                if self._is_too_far(distance, rows_B, experience):
                    self._drop_gradients()
                    stats.count("steps_left_out", len(steps) - at)
                    break
                if self.ptx is not None:
                    self._add_ptx_gradient(stats, measure)
            self._step(trained, stats)
        self.ahead.wait()  # nothing samples while the engine's weights change
        pushed = self._push() if self.policy_version != version and not self.ahead.failed else {}
        return {"steps_left_out": 0.0, **stats.over_ranks(self.accelerator), **pushed}

    def value_loss(self, values_BS: Tensor, batch: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum over reply tokens, and sums for the log."""
        return functional.value_loss(
            values_BS,
            batch.old_values_NS,
            batch.returns_NS,
            batch.mask_NS,
            self.config.cliprange_value,
            weights_BT=batch.weights_NS,
        )

    def policy_loss(self, logps_BS: Tensor, batch: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum over reply tokens, and sums for the log; `logps_BS` on the support of `batch.old_logps_NS`."""
        weights_BS = batch.weights_NS
        if batch.importance_NS is not None:
            weights_BS = batch.importance_NS if weights_BS is None else weights_BS * batch.importance_NS
        return functional.policy_loss(
            logps_BS,
            batch.old_logps_NS,
            batch.advantages_NS,
            batch.mask_NS,
            self.config.cliprange,
            dual_clip=self.config.dual_clip,
            weights_BT=weights_BS,
        )

    def ptx_loss(self, input_ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Sum over the blocks' tokens of their negative log-likelihood under the policy."""
        return ptx_nll_sum(self.policy.module, input_ids_BT, mask_BT)

    def _critic_gradient(self, batches: list[Experience], divisor: int, stats: UpdateStats) -> None:
        scale = self.config.vf_coef * self.world_size / divisor  # DDP averages over ranks
        for is_last, batch in mark_last(batches):
            with self.critic.gradients_stay_here(unless=is_last):
                loss_sum, sums = self.value_loss(state_values(self.critic.module, batch.tokens), batch)
                self.accelerator.backward(loss_sum * scale)
            stats.add("value", loss_sum, {"tokens": batch.mask_NS.sum(), **sums, "weight": batch.divisor()})

    def _policy_gradient(self, batches: list[Experience], divisor: int, stats: UpdateStats, average: bool) -> Tensor:
        """Accumulate PPO's gradient; `average` it over ranks now, or leave that to the ptx gradient that follows.

        Returns the summed approximate KL(old || new) of this rank's tokens.
        """
        config, distance = self.config, torch.zeros((), device=self.accelerator.device)
        for is_last, batch in mark_last(batches):
            with self.policy.gradients_stay_here(unless=is_last and average):
                policy = reply_distribution(
                    self.policy.module,
                    batch.tokens,
                    config.rollout.temperature,
                    support=batch.support,
                    entropy=config.entropy_coef > 0,
                )
                batch = weighed(batch, config, stats)
                loss_sum, sums = self.policy_loss(policy.ratio, batch)
                whole = regularized(loss_sum, policy, batch, config, self.kl.coef, stats)
                self.accelerator.backward(whole * (self.world_size / divisor))
            stats.add("policy", loss_sum, {"tokens": batch.mask_NS.sum(), **sums, "weight": batch.divisor()})
            log_ratio_BS = policy.ratio.detach() - batch.old_logps_NS
            distance += functional.masked_sum(torch.expm1(log_ratio_BS) - log_ratio_BS, batch.mask_NS).to(distance)
        return distance

    def _is_too_far(self, distance: Tensor, rows_B: Tensor, experience: Experience) -> bool:
        """Whether the minibatch's mean approximate KL, over all ranks, is above `target_kl`."""
        if self.config.target_kl is None:
            return False
        distance = self.accelerator.reduce(distance, "sum") if self.world_size > 1 else distance
        return float(distance) / max(1, int(experience.mask_NS[rows_B].sum())) > self.config.target_kl

    def _add_ptx_gradient(self, stats: UpdateStats, measure: bool) -> None:
        """Accumulate the ptx gradient; with `measure`, log its norm relative to PPO's (costs a copy) and lead the
        coefficient by it when that is automatic.

        Averaging twice over ranks is right: what was averaged before is equal on all of them and stays as it is.
        """
        before = self.policy.gradients() if measure else []
        micros, num_tokens = self.ptx.next(self.rank, self.world_size)
        for is_last, (ids_BT, mask_BT) in mark_last(micros):
            ids_BT, mask_BT = ids_BT.to(self.accelerator.device), mask_BT.to(self.accelerator.device)
            with self.policy.gradients_stay_here(unless=is_last):
                loss_sum = self.ptx_loss(ids_BT, mask_BT)
                self.accelerator.backward(loss_sum * (self.ptx_coef.coef * self.world_size / num_tokens))
            stats.add("ptx", loss_sum, {"tokens": mask_BT[:, 1:].sum().to(loss_sum)})
        if measure:
            stats.norm("ptx/coef", torch.tensor(self.ptx_coef.coef))
            norm = total_norm(before)
            if norm == 0:  # every reply was masked: nothing to compare with
                return
            added = (p.grad - old for p, old in zip(self.policy.parameters, before, strict=True) if p.grad is not None)
            ratio = total_norm(added) / norm
            stats.norm("ptx/grad_norm_ratio", ratio)
            self.ptx_coef.update(float(ratio))

    def _step(self, trained: dict[str, TrainedModel], stats: UpdateStats) -> None:
        """Clip and step what was trained, all or, when a gradient is not finite, nothing."""
        norms = {name: model.clip() for name, model in trained.items()}
        broken = [name for name, norm in norms.items() if not torch.isfinite(norm)]
        if broken:
            self._drop_gradients()
            if self.config.guards.non_finite == "skip":
                stats.count("steps_not_finite")
                return
            self._stop_broken(f"the gradient of the {' and the '.join(broken)} loss is not finite")
        for name, model in trained.items():
            model.step()
            stats.norm(f"{name}/grad_norm", norms[name])
        self.optimizer_steps += 1
        if "policy" in trained:
            self.policy_version += 1
            if self.ema is not None:
                self.ema.update(self.policy.raw)

    def _push(self) -> dict[str, float]:
        try:
            return push_weights(self)
        except TrainingError as problem:
            folder = ppo_state.save(self, self.output_dir / "failed")
            raise SavedError(
                f"{problem} (iteration {self.state.global_step + 1}); the models after its update are saved in {folder}"
            ) from problem

    def _drop_gradients(self) -> None:
        self.policy.drop_gradients()
        self.critic.drop_gradients()

    def _stop_broken(self, what: str) -> NoReturn:
        """Save what there is, apart from the sound checkpoints (it lies inside an iteration), and stop."""
        folder = ppo_state.save(self, self.output_dir / "failed")
        raise SavedError(
            f"{what} in iteration {self.state.global_step + 1}; the models as they were before that step are saved "
            f"in {folder}: continue from an earlier checkpoint with a lower learning rate, or look at samples.jsonl"
        )
