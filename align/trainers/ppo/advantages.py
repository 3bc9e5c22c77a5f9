"""Advantage estimators (`ppo.advantage`): from the shaped rewards of a global batch to what each token is worth.

An estimator is a class: made of the configuration, called with the rewards of the whole global batch. Whitening over
that batch comes after it and is the same for all. A fifth one is a class here, or `register`ed by a program, and a row
of `align.recipe.estimators`, which says what a recipe must know of it before torch is there.

A reward, or what follows a token of it, is compared with:

    gae            the critic's values; then whitened, unless the recipe says otherwise
    rloo           the other replies to the prompt
    grpo           all replies to the prompt, over their deviation
    dr_grpo        the same, not over it
    reinforce_pp   the whole batch, by being whitened; else it is REINFORCE with rewards-to-go

The KL of `kl_in: reward` is compared, scaled and whitened with the rewards that it is part of, as in the papers of rloo
and reinforce_pp. grpo has it in the loss unless a recipe says otherwise, as its paper does: divided by the deviation of
replies that are rewarded alike, nothing but their KL would be learnt from them, at full size. `kl_coef` then weighs it
against advantages of deviation 1. The paper takes each reply's mean over its tokens first (`loss_aggregation:
sequence`). The ratio and its clip are a token's in all of them; where replies are compared, a masked one is in nobody's
mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Tensor

from align import functional
from align.recipe.estimators import ESTIMATORS as FACTS
from align.recipe.estimators import Estimator
from align.recipe.ppo_section import PPOConfig


class AdvantageEstimator(Protocol):
    """What `ppo.advantage` names."""

    def __init__(self, config: PPOConfig): ...

    def __call__(
        self, rewards_NS: Tensor, values_NS: Tensor | None, mask_NS: Tensor, groups_N: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(advantages_NS, the critic's targets_NS or None without a critic), 0 at masked positions, without gradient.

        Args:
            rewards_NS: of each token; the score stands on the last one. One at a masked position is ignored.
            values_NS: of the state before the token; None without a critic.
            mask_NS: 1 on tokens that are learnt from.
            groups_N: replies to one prompt have one number.
        """


Kind = TypeVar("Kind", bound=type[AdvantageEstimator])
ESTIMATORS: dict[str, type[AdvantageEstimator]] = {}


def register(name: str, facts: Estimator | None = None) -> Callable[[Kind], Kind]:
    """Make the decorated class what `ppo.advantage: name` means; of one that is defined again, the later definition.

    Args:
        facts: what a recipe must know of it; None: `align.recipe.estimators` has it.

    Raises:
        ValueError: another estimator has that name, or nothing says what a recipe must know of this one.
    """

    def add(kind: Kind) -> Kind:
        taken = ESTIMATORS.get(name, kind)
        if (taken.__module__, taken.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ValueError(f"there is an advantage estimator '{name}' already: register this one by another name")
        if facts is not None:
            FACTS[name] = facts
        elif name not in FACTS:
            raise ValueError(
                f"advantage estimator '{name}': say what a recipe must know of it, register('{name}', Estimator(…)), "
                "with align.recipe.estimators.Estimator"
            )
        ESTIMATORS[name] = kind
        return kind

    return add


@register("gae")
class GAE:
    """Generalised advantage estimation (Schulman et al. 2016). With `critic_lam` the critic's targets have a lambda of
    their own ("decoupled GAE": Yue et al. 2025, VAPO, section 3)."""

    def __init__(self, config: PPOConfig):
        self.config = config

    def __call__(
        self, rewards_NS: Tensor, values_NS: Tensor | None, mask_NS: Tensor, groups_N: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        gamma, lam, critic_lam = self.config.gamma, self.config.lam, self.config.critic_lam
        advantages_NS, targets_NS = functional.gae(rewards_NS, values_NS, mask_NS, gamma, lam)
        if critic_lam is not None and critic_lam != lam:
            _, targets_NS = functional.gae(rewards_NS, values_NS, mask_NS, gamma, critic_lam)
        return advantages_NS, targets_NS


@register("rloo")
class RLOO:
    """REINFORCE leave-one-out (Ahmadian et al. 2024)."""

    def __init__(self, config: PPOConfig):
        pass

    def __call__(
        self, rewards_NS: Tensor, values_NS: Tensor | None, mask_NS: Tensor, groups_N: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return functional.rloo_advantages(rewards_NS, mask_NS, groups_N), None


@register("grpo")
class GRPO:
    """Group relative advantages, divided by the deviation of the group's rewards (Shao et al. 2024)."""

    scale = True

    def __init__(self, config: PPOConfig):
        pass

    def __call__(
        self, rewards_NS: Tensor, values_NS: Tensor | None, mask_NS: Tensor, groups_N: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return functional.grpo_advantages(rewards_NS, mask_NS, groups_N, scale=self.scale), None


@register("dr_grpo")
class DrGRPO(GRPO):
    """The same without the division (Liu et al. 2025): RLOO's advantages times (k - 1) / k."""

    scale = False


@register("reinforce_pp")
class ReinforcePlusPlus:
    """REINFORCE++ (Hu 2025): the reward from each token on, KL included; its normalisation over the global batch is
    `whiten_advantages`."""

    def __init__(self, config: PPOConfig):
        self.gamma = config.gamma

    def __call__(
        self, rewards_NS: Tensor, values_NS: Tensor | None, mask_NS: Tensor, groups_N: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return functional.discounted_returns(rewards_NS, mask_NS, self.gamma), None
