"""The critic: a value per position, from a backbone of its own that starts as the reward model's.

The Qwen report (3.2.2) names a value model and no more. Here: the reward model's body (InstructGPT, C.4 starts the
critic so) and a new head of zeros ("N implementation details": the value of everything is 0 before warm-up).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

from reward.headed import HeadedModel

if TYPE_CHECKING:
    from reward.flat import Parts


class Critic(HeadedModel):
    """Values in the unit of the (normalised) rewards; the head is zero at the start and computes in float32."""

    settings_file: ClassVar[str] = "critic_config.json"
    zero_head: ClassVar[bool] = True

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        *,
        parts: Parts | None = None,
        with_states: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Values (B, T) in float32: entry t is the value of having read tokens 0..t. Masked positions hold anything.

        Args:
            input_ids: (B, T), padded on either side with any id.
            attention_mask: (B, T), 1 = a token of the sequence.
            position_ids: (B, T); made from the mask by default.
            parts: the prompts and replies of one flat row (`reward.flat`), whose positions must be given.
            with_states: also return the hidden states (B, T, d).
        """
        states_BTd = self.states(input_ids, attention_mask, position_ids, parts)
        values_BT = self.head(states_BTd)
        return (values_BT, states_BTd) if with_states else values_BT

    @classmethod
    def from_reward_model(cls, reward_model: HeadedModel | str | Path, **load_kwargs: Any) -> Self:
        """The body of a reward model (a module, which is copied, frozen or not, or a folder or hub id) with a zero
        head; trainable."""
        if isinstance(reward_model, str | Path):
            return cls.from_backbone(reward_model, **load_kwargs)
        if not isinstance(reward_model, HeadedModel):
            raise TypeError(f"reward_model: must be a RewardModel or its path, not a {type(reward_model).__name__}")
        return cls._from_copy(reward_model.backbone)

    @classmethod
    def from_causal_lm(cls, model: nn.Module | str | Path, **load_kwargs: Any) -> Self:
        """The body of a causal language model (a module, which is copied, or a folder or hub id) with a zero head."""
        if isinstance(model, str | Path):
            return cls.from_backbone(model, **load_kwargs)
        if not hasattr(model, "base_model"):
            raise TypeError(f"model: must be a causal language model or its path, not a {type(model).__name__}")
        return cls._from_copy(model.base_model)

    @classmethod
    def _from_copy(cls, backbone: nn.Module) -> Self:
        critic = cls(copy.deepcopy(backbone)).requires_grad_(True)
        critic.zero_grad(set_to_none=True)
        return critic.eval()
