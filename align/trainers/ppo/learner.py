"""The learning half of PPO: the optimizer steps of policy and critic on an iteration's experience.

Losses are sums over reply tokens divided by the token count of the minibatch over all ranks (`loss_aggregation:
sequence`: means over each reply's tokens, divided by the number of replies); under DDP, which averages gradients over
ranks, they are multiplied by the number of ranks. So gradients do not depend on micro-batch size, padding or ranks. The
ptx gradient (see `ptx.py`) is accumulated into the policy's same optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from align.recipe.ppo_section import PPOConfig
from align.trainers.optimization import TrainedModel, mark_last, total_norm
from align.trainers.ppo.average import WeightAverage
from align.trainers.ppo.controllers import PtxController
from align.trainers.ppo.forward import reply_distribution, state_values
from align.trainers.ppo.guards import NotFiniteError
from align.trainers.ppo.losses import LossSum, Mean, loss_figures, policy_terms, with_importance
from align.trainers.ppo.metrics import UpdateMetrics
from align.trainers.ppo.minibatches import Minibatches
from align.trainers.ppo.ptx import PtxStream
from align.trainers.ppo.types import Experience


@dataclass(frozen=True, slots=True)
class Losses:
    """The seams of an update; see the methods of `PPOTrainer` that they are."""

    policy: Callable[[Tensor, Experience], LossSum]
    value: Callable[[Tensor, Experience], LossSum]
    ptx: Callable[[Tensor, Tensor], Tensor]


class StepCount:
    """How many optimizer steps were made."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> int:
        """The number."""
        return self.value

    def load_state_dict(self, state: int) -> None:
        """Count on from `state_dict()`."""
        self.value = state


class Learner:
    """What is trained, and how.

    Args:
        policy, critic: each with its optimizer; without a critic only the policy is trained.
        average: of the policy's weights, or None.
        ptx: the blocks that are mixed in, or None; `ptx_coef` is the factor of their loss.

    Attributes:
        steps: optimizer steps made. policy_steps: those that moved the policy, which number its weights' versions.
    """

    def __init__(
        self,
        policy: TrainedModel,
        critic: TrainedModel | None,
        average: WeightAverage | None,
        ptx: PtxStream | None,
        ptx_coef: PtxController,
        config: PPOConfig,
        accelerator: Accelerator,
    ):
        self.policy, self.critic, self.average = policy, critic, average
        self.ptx, self.ptx_coef, self.config, self.accelerator = ptx, ptx_coef, config, accelerator
        self.steps, self.policy_steps = StepCount(), StepCount()

    def update(
        self,
        experience: Experience,
        minibatches: Minibatches,
        losses: Losses,
        warming_up: Callable[[], bool],
        *,
        kl_coef: float,
        logs: bool,
    ) -> dict[str, float]:
        """`num_ppo_epochs` passes of `num_mini_batches` optimizer steps; returns their mean statistics.

        With `target_kl` the first minibatch on which the policy is already further away than that ends the update.

        Args:
            warming_up: whether the coming step is the critic's alone.
            kl_coef: of the KL term in the loss.
            logs: whether the iteration is logged, and the ptx gradient worth measuring.

        Raises:
            NotFiniteError: a gradient that is not finite (unless such steps are skipped); the models are as before that
                step.
        """
        config, metrics, version = self.config, UpdateMetrics(), self.policy_steps.value
        steps = [step for epoch in range(config.num_ppo_epochs) for step in minibatches(experience.tokens, epoch)]
        for at, (rows_B, micros) in enumerate(steps):
            divisor = max(1, experience.divisor(rows_B))
            batches, trained = [experience.rows(micro) for micro in micros], {}
            if self.critic is not None:
                trained["value"] = self.critic
                self._critic_gradient(batches, divisor, losses, metrics)
            if not warming_up():
                trained["policy"] = self.policy
                measure = self.policy_steps.value == version and (logs or self.ptx_coef.automatic)
                # FSDP2 keeps what is not averaged yet where it cannot be dropped
                average = self.ptx is None or measure or config.target_kl is not None
                distance = self._policy_gradient(batches, divisor, losses, metrics, kl_coef, average)
                if self._is_too_far(distance, rows_B, experience):
                    self.drop_gradients()
                    metrics.count("steps_left_out", len(steps) - at)
                    break
                if self.ptx is not None:
                    self._ptx_gradient(losses, metrics, measure)
            self._step(trained, metrics)
        return {"steps_left_out": 0.0, **metrics.over_ranks(self.accelerator)}

    def drop_gradients(self) -> None:
        """Forget the gradients of all that is trained."""
        for model in (self.policy, self.critic):
            if model is not None:
                model.drop_gradients()

    def _critic_gradient(self, batches: list[Experience], divisor: int, losses: Losses, metrics: UpdateMetrics) -> None:
        scale = self.config.vf_coef * self.accelerator.num_processes / divisor  # DDP averages over ranks
        for is_last, batch in mark_last(batches):
            with self.critic.gradients_stay_here(unless=is_last):
                loss = losses.value(state_values(self.critic.module, batch.tokens), batch)
                self.accelerator.backward(loss[0] * scale)
            metrics.add(loss_figures("value", loss, batch))

    def _policy_gradient(
        self,
        batches: list[Experience],
        divisor: int,
        losses: Losses,
        metrics: UpdateMetrics,
        kl_coef: float,
        average: bool,
    ) -> Tensor:
        """Accumulate PPO's gradient; `average` it over ranks now, or leave that to the ptx gradient that follows.

        Returns the summed approximate KL(old || new) of this rank's tokens.
        """
        config, distance = self.config, torch.zeros((), device=self.accelerator.device)
        scale = self.accelerator.num_processes / divisor  # DDP averages over ranks
        for is_last, batch in mark_last(batches):
            with self.policy.gradients_stay_here(unless=is_last and average):
                logps = reply_distribution(
                    self.policy.module,
                    batch.tokens,
                    config.rollout.temperature,
                    support=batch.support,
                    entropy=config.entropy_coef > 0,
                )
                batch, importance = with_importance(batch, config)
                terms = policy_terms(losses.policy(logps.ratio, batch), logps, batch, config, kl_coef)
                self.accelerator.backward(terms.total * scale)
            metrics.add(importance | terms.figures)
            distance += terms.distance.to(distance)
        return distance

    def _is_too_far(self, distance: Tensor, rows_B: Tensor, experience: Experience) -> bool:
        """Whether the minibatch's mean approximate KL, over all ranks, is above `target_kl`."""
        if self.config.target_kl is None:
            return False
        distance = self.accelerator.reduce(distance, "sum") if self.accelerator.num_processes > 1 else distance
        return float(distance) / max(1, int(experience.mask_NS[rows_B].sum())) > self.config.target_kl

    def _ptx_gradient(self, losses: Losses, metrics: UpdateMetrics, measure: bool) -> None:
        """Accumulate the ptx gradient; with `measure`, log its norm relative to PPO's (costs a copy) and lead the
        coefficient by it when that is automatic.

        Averaging twice over ranks is right: what was averaged before is equal on all of them and stays as it is.
        """
        before = self.policy.gradients() if measure else []
        world_size = self.accelerator.num_processes
        micros, num_tokens = self.ptx.next(self.accelerator.process_index, world_size)
        for is_last, (ids_BT, mask_BT) in mark_last(micros):
            ids_BT, mask_BT = ids_BT.to(self.accelerator.device), mask_BT.to(self.accelerator.device)
            with self.policy.gradients_stay_here(unless=is_last):
                loss_sum = losses.ptx(ids_BT, mask_BT)
                self.accelerator.backward(loss_sum * (self.ptx_coef.coef * world_size / num_tokens))
            metrics.add({"ptx/loss": Mean(loss_sum.detach(), mask_BT[:, 1:].sum().to(loss_sum))})
        if measure:
            metrics.note("ptx/coef", torch.tensor(self.ptx_coef.coef))
            norm = total_norm(before)
            if norm == 0:  # every reply was masked: nothing to compare with
                return
            added = (p.grad - old for p, old in zip(self.policy.parameters, before, strict=True) if p.grad is not None)
            ratio = total_norm(added) / norm
            metrics.note("ptx/grad_norm_ratio", ratio)
            self.ptx_coef.update(float(ratio))

    def _step(self, trained: dict[str, TrainedModel], metrics: UpdateMetrics) -> None:
        """Clip and step what was trained, all or, when a gradient is not finite, nothing."""
        norms = {name: model.clip() for name, model in trained.items()}
        broken = [name for name, norm in norms.items() if not torch.isfinite(norm)]
        if broken:
            self.drop_gradients()
            if self.config.guards.non_finite == "skip":
                metrics.count("steps_not_finite")
                return
            raise NotFiniteError(f"the gradient of the {' and the '.join(broken)} loss is not finite")
        for name, model in trained.items():
            model.step()
            metrics.note(f"{name}/grad_norm", norms[name])
        self.steps.value += 1
        if "policy" in trained:
            self.policy_steps.value += 1
            if self.average is not None:
                self.average.update(self.policy.raw)
