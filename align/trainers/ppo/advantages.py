"""Advantage estimators: from rewards a token to what the policy learns from and the critic's targets.

One is a class here and a word in the recipe. Replies to one prompt stand side by side, `num_generations` of them.
Whitening is not theirs: `PPOTrainer.compute_advantages` does it over the whole global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from torch import Tensor

from align import functional
from align.recipe.ppo_section import PPOConfig


class Estimator(Protocol):
    """Made from the configuration once, asked once an iteration.

    Attributes:
        needs_critic: whether it reads values; without, no critic is loaded or trained.
    """

    needs_critic: ClassVar[bool]

    @classmethod
    def from_config(cls, config: PPOConfig) -> Self:
        """As the recipe says."""

    def __call__(self, rewards_NS: Tensor, values_NS: Tensor | None, mask_NS: Tensor) -> tuple[Tensor, Tensor | None]:
        """(advantages_NS, returns_NS), both 0 at masked positions; no returns without values.

        Args:
            rewards_NS: what each action earned, a KL penalty and the score on the last.
            values_NS: the critic's before the update; None where there is none.
            mask_NS: 1 on the actions that are learnt from.
        """


@dataclass(frozen=True, slots=True)
class GAE:
    """Generalised advantage estimation (Schulman et al. 2016). With `critic_lam` the returns have a lambda of their own
    ("decoupled GAE": Yue et al. 2025, VAPO, section 3)."""

    needs_critic: ClassVar[bool] = True
    gamma: float
    lam: float
    critic_lam: float | None = None

    @classmethod
    def from_config(cls, config: PPOConfig) -> Self:
        return cls(config.gamma, config.lam, config.critic_lam)

    def __call__(self, rewards_NS: Tensor, values_NS: Tensor | None, mask_NS: Tensor) -> tuple[Tensor, Tensor]:
        advantages_NS, returns_NS = functional.gae(rewards_NS, values_NS, mask_NS, self.gamma, self.lam)
        if self.critic_lam is not None and self.critic_lam != self.lam:
            _, returns_NS = functional.gae(rewards_NS, values_NS, mask_NS, self.gamma, self.critic_lam)
        return advantages_NS, returns_NS


ESTIMATORS: dict[str, type[Estimator]] = {"gae": GAE}
