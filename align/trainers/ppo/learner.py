"""The gradients and optimizer steps of policy and critic; which follow one another is `PPOTrainer.update`'s.

Losses are sums over reply tokens divided by the token count of the minibatch over all ranks (`loss_aggregation:
sequence`: means over each reply's tokens, divided by the number of replies); under DDP, which averages gradients over
ranks, they are multiplied by the number of ranks. So gradients do not depend on micro-batch size, padding or ranks. The
ptx gradient (see `ptx.py`) is accumulated into the policy's same optimizer step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from align.recipe.ppo_section import PPOConfig
from align.runtime.devices import index_on
from align.trainers import sharding
from align.trainers.optimization import TrainedModel, mark_last, total_norm
from align.trainers.ppo.controllers import PtxController
from align.trainers.ppo.forward import ReplyLogprobs, reply_distribution, state_values
from align.trainers.ppo.guards import NotFiniteError
from align.trainers.ppo.losses import LossSum, Mean, loss_figures, policy_terms, with_importance
from align.trainers.ppo.metrics import UpdateMetrics
from align.trainers.ppo.ptx import PtxStream
from align.trainers.ppo.types import Experience

PolicyLoss = Callable[[Tensor, Experience], LossSum]  # the seams of `PPOTrainer`
ValueLoss = Callable[[Tensor, Experience], LossSum]
PtxLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Minibatch:
    """What one optimizer step learns from.

    Attributes:
        experience: of the whole iteration. micros: its rows in each of this rank's micro-batches.
        divisor: of the summed losses, over all ranks. tokens: how many are learnt from, over all ranks; a scalar.
    """

    experience: Experience
    micros: list[Tensor]
    divisor: int
    tokens: Tensor

    @classmethod
    def of(cls, experience: Experience, rows_B: Tensor, micros: list[Tensor]) -> Minibatch:
        """The global rows `rows_B`, of which this rank has `micros`."""
        tokens = experience.mask_NS[index_on(experience.mask_NS.device, rows_B)].sum()
        return cls(experience, micros, max(1, int(experience.divisor(rows_B))), tokens)


class WeightAverage:
    """A copy of `module` that `update(module)` moves: `copy = decay * copy + (1 - decay) * module` (Ouyang et al. 2022,
    appendix C.4: 0.992).

    It starts as the module is, which is not prepared yet: FSDP2 has no copies of what is sharded. The copy lies,
    sharded alike, where the module will. What is frozen (the base of an adapter) is shared, but for FSDP2, which shards
    each of the two by itself.
    """

    def __init__(self, module: nn.Module, decay: float, accelerator: Accelerator):
        frozen = {} if accelerator.is_fsdp2 else {id(p): p for p in _frozen(module)}
        self.decay = decay
        self.names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self.module, _ = sharding.prepare(accelerator, copy.deepcopy(module, frozen).requires_grad_(False))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's weights as they are now."""
        mine, its = dict(self.module.named_parameters()), dict(module.named_parameters())
        for name in self.names:
            mine[name].lerp_(its[name].detach(), 1.0 - self.decay)


def _frozen(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if not parameter.requires_grad]


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
    """What is trained: gradients are accumulated, then stepped by.

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
        *,
        average: WeightAverage | None,
        ptx: PtxStream | None,
        ptx_coef: PtxController,
        config: PPOConfig,
        accelerator: Accelerator,
    ):
        self.policy, self.critic, self.average = policy, critic, average
        self.ptx, self.ptx_coef, self.config, self.accelerator = ptx, ptx_coef, config, accelerator
        self.steps, self.policy_steps = StepCount(), StepCount()

    def critic_gradient(self, minibatch: Minibatch, value_loss: ValueLoss, metrics: UpdateMetrics) -> None:
        """Accumulate the critic's gradient; nothing without a critic."""
        if self.critic is None:
            return
        scale = self.config.vf_coef * self.accelerator.num_processes / minibatch.divisor  # DDP averages over ranks
        for is_last, rows_B in mark_last(minibatch.micros):
            batch = minibatch.experience.rows(rows_B)
            with self.critic.gradients_stay_here(unless=is_last):
                loss = value_loss(state_values(self.critic.module, batch.tokens), batch)
                self.accelerator.backward(loss[0] * scale)
            metrics.add(loss_figures("value", loss, batch))

    def policy_gradient(
        self, minibatch: Minibatch, policy_loss: PolicyLoss, kl_coef: float, metrics: UpdateMetrics, measure: bool
    ) -> Tensor:
        """Accumulate PPO's gradient.

        Args:
            kl_coef: of the KL term in the loss.
            measure: whether the ptx gradient that follows is compared with this one, which must be averaged over ranks
                then; else that may be left to the ptx gradient.

        Returns:
            The summed approximate KL(old || new) of this rank's tokens.
        """
        config, distance = self.config, torch.zeros((), device=self.accelerator.device)
        average = self.ptx is None or measure
        scale = self.accelerator.num_processes / minibatch.divisor  # DDP averages over ranks
        for is_last, rows_B in mark_last(minibatch.micros):
            batch = minibatch.experience.rows(rows_B)
            with self.policy.gradients_stay_here(unless=is_last and average):
                logps = self._policy_on(batch)
                if batch.late is not None:  # nobody has asked before
                    batch.late.tell(rows_B, logps)
                    batch = minibatch.experience.rows(rows_B)
                batch, importance = with_importance(batch, config)
                terms = policy_terms(policy_loss(logps.ratio, batch), logps, batch, config, kl_coef)
                self.accelerator.backward(terms.total * scale)
            metrics.add(importance | terms.figures)
            distance += terms.distance.to(distance)
        return distance

    def _policy_on(self, batch: Experience) -> ReplyLogprobs:
        """What the policy says of a micro-batch, with gradient: what its pass before the update said, where that was
        kept."""
        kept, learns = None if batch.kept is None else batch.kept.take(), self.config.entropy_coef > 0
        return kept or reply_distribution(
            self.policy.module,
            batch.tokens,
            self.config.rollout.temperature,
            support=batch.support,
            entropy=learns or batch.late is not None,
            entropy_gradient=learns,
        )

    def is_too_far(self, distance: Tensor, minibatch: Minibatch) -> bool:
        """Whether the minibatch's mean approximate KL, over all ranks, is above `target_kl`."""
        if self.config.target_kl is None:
            return False
        distance = self.accelerator.reduce(distance, "sum") if self.accelerator.num_processes > 1 else distance
        return float(distance) / max(1, int(minibatch.tokens)) > self.config.target_kl

    def measures_ptx(self, logs: bool) -> bool:
        """Whether to compare the gradients of ptx and PPO where an iteration is logged (`logs`), or the coefficient
        follows them."""
        return self.ptx is not None and (logs or self.ptx_coef.automatic)

    def drop_gradients(self) -> None:
        """Forget the gradients of all that is trained."""
        for model in (self.policy, self.critic):
            if model is not None:
                model.drop_gradients()

    def ptx_gradient(self, ptx_loss: PtxLoss, metrics: UpdateMetrics, measure: bool) -> None:
        """Accumulate the ptx gradient, where blocks are mixed in; with `measure`, log its norm relative to PPO's (costs
        a copy) and lead the coefficient by it when that is automatic.

        Averaging twice over ranks is right: what was averaged before is equal on all of them and stays as it is.
        """
        if self.ptx is None:
            return
        before = self.policy.gradients() if measure else []
        world_size = self.accelerator.num_processes
        micros, num_tokens = self.ptx.next(self.accelerator.process_index, world_size)
        for is_last, (ids_BT, mask_BT) in mark_last(micros):
            ids_BT, mask_BT = (index_on(self.accelerator.device, one) for one in (ids_BT, mask_BT))
            with self.policy.gradients_stay_here(unless=is_last):
                loss_sum = ptx_loss(ids_BT, mask_BT)
                self.accelerator.backward(loss_sum * (self.ptx_coef.coef * world_size / num_tokens))
            tokens = mask_BT[:, 1:].sum().to(loss_sum)
            metrics.add({"ptx/loss": Mean(loss_sum.detach(), tokens)})
            if self.ptx.max_z is not None:
                metrics.add({"ptx/max_z": Mean(self.ptx.max_z, tokens)})
        if measure:
            metrics.note("ptx/coef", torch.tensor(self.ptx_coef.coef))
            norm = total_norm(before)
            if norm == 0:  # every reply was masked: nothing to compare with
                return
            added = (p.grad - old for p, old in zip(self.policy.parameters, before, strict=True) if p.grad is not None)
            ratio = total_norm(added) / norm
            metrics.note("ptx/grad_norm_ratio", ratio)
            self.ptx_coef.update(float(ratio))

    def step(self, metrics: UpdateMetrics, *, with_policy: bool) -> None:
        """Clip and step the critic and, unless it is the critic's alone, the policy: both or, when a gradient is not
        finite, nothing.

        Raises:
            NotFiniteError: such a gradient, unless those steps are skipped; the models are as before it.
        """
        trained = {} if self.critic is None else {"value": self.critic}
        trained |= {"policy": self.policy} if with_policy else {}
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
        if with_policy:
            self.policy_steps.value += 1
            if self.average is not None:
                self.average.update(self.policy.raw)
