"""The reward model: score = (head(pooled hidden states) - shift) / scale.

The Qwen report (3.2.1) adds a "pooling layer" that reads the reward at a special end token and says no more. Here:
`reward.pooling`, by default the state at `<|im_end|>`, through one bias-free linear unit in float32. `shift` makes
reference replies average 0 ("N implementation details": demonstrations score 0 on average), `scale` their standard
deviation 1 where that is wanted; both are in `reward_config.json`, where a missing scale means 1.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reward.errors import ModelFileError
from reward.head import ScalarHead
from reward.headed import HeadedModel
from reward.last_layer import last_mlp_only_at
from reward.layout import tree_mask
from reward.pooling import POOLINGS, Pooler


class RewardModel(HeadedModel):
    """Scores sequences; higher is better. Unit: the logit of being preferred, divided by `scale`.

    Args:
        backbone: a transformers model with `last_hidden_state`, or a peft adapter around one.
        head: default: a new one, drawn from the global generator.
        shift, scale: score = (raw - shift) / scale.
        pooling: one of `reward.pooling.POOLINGS`.

    Raises:
        ValueError: an unknown pooling.
    """

    settings_file: ClassVar[str] = "reward_config.json"
    zero_head: ClassVar[bool] = False

    def __init__(
        self,
        backbone: nn.Module,
        head: ScalarHead | None = None,
        shift: float = 0.0,
        *,
        scale: float = 1.0,
        pooling: str = "end_token",
    ):
        super().__init__(backbone, head)
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32, device=self.device))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32, device=self.device))
        self.set_pooling(pooling)

    @property
    def pooling(self) -> str:
        """How the states of a sequence become one vector."""
        return self.pooler.kind

    def set_pooling(self, kind: str) -> None:
        """Read the score off another pooling; the head's weights stay.

        Raises:
            ValueError: an unknown pooling.
        """
        self.pooler = Pooler(kind, self.head.weight.shape[1]).to(self.head.weight.device)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        *,
        members: Tensor | None = None,
        rows: Tensor | None = None,
        parts: Tensor | None = None,
        with_states: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Scores in float32: (B,), or (N,) for N sequences laid out in B rows.

        Args:
            input_ids: (B, T), padded on either side with any id.
            attention_mask: (B, T), 1 = a token of the sequence, each row with at least one; or (B, 1, T, T), which
                token sees which, with `position_ids`, `members` and `rows` (`reward.layout`).
            position_ids: (B, T); made from the mask by default.
            members: (N, T), the columns of each sequence.
            rows: (N,), the row of each sequence.
            parts: (S, 2), the prompts and replies of one flat row (`reward.flat`).
            with_states: also return the hidden states (B, T, d).

        Raises:
            ModelFileError: a 4D mask or parts for an attention that takes none.
        """
        seen = attention_mask
        if seen.dim() == 4:
            seen = tree_mask(seen, self.config, self._accepted, next(self.backbone.parameters()).dtype)
        if members is None or rows is None:
            members, rows = attention_mask, torch.arange(len(input_ids), device=input_ids.device)
        columns_N = None if with_states else self.pooler.columns_read(members)
        with nullcontext() if columns_N is None else self._only_at(rows, columns_N, input_ids.shape):
            states_BTd = self.states(input_ids, seen, position_ids, parts)
        scores_N = (self.head(self.pooler(states_BTd, members, rows)) - self.shift) / self.scale
        return (scores_N, states_BTd) if with_states else scores_N

    def _only_at(self, rows_N: Tensor, columns_N: Tensor, shape: torch.Size) -> AbstractContextManager:
        return last_mlp_only_at(self.backbone, shape, rows_N.to(columns_N.device) * shape[1] + columns_N)

    def _apply(self, fn, recurse=True):
        kept = {name: getattr(self, name) for name in ("shift", "scale")}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            if getattr(self, name).dtype != value.dtype:
                setattr(self, name, value.to(getattr(self, name).device))
        return self

    def settings(self) -> dict[str, Any]:
        """Pooling, shift and scale."""
        return {"pooling": self.pooling, "shift": float(self.shift), "scale": float(self.scale)}

    def classifier_settings(self) -> dict[str, Any] | None:
        """Shift and scale, which a plain sequence classifier carries without applying them."""
        if self.pooling != "end_token":
            return None
        return {"reward_shift": float(self.shift), "reward_scale": float(self.scale)}

    def take_settings(self, settings: dict[str, Any], path: Path) -> None:
        """Pooling, shift and scale; an unknown pooling is an error, a missing shift too, a missing scale is 1."""
        pooling, shift, scale = settings.get("pooling"), settings.get("shift"), settings.get("scale", 1.0)
        if pooling not in POOLINGS:
            raise ModelFileError(f"{path}: 'pooling' is {pooling!r}, known are {', '.join(POOLINGS)}")
        if not _finite(shift):
            raise ModelFileError(f"{path}: 'shift' must be a finite number, found {shift!r}")
        if not _finite(scale) or scale <= 0:
            raise ModelFileError(f"{path}: 'scale' must be a finite number above 0, found {scale!r}")
        self.set_pooling(pooling)
        self.shift.fill_(float(shift))
        self.scale.fill_(float(scale))


def _finite(value: Any) -> bool:
    """Whether it is a number that float32 holds."""
    is_number = isinstance(value, float | int) and not isinstance(value, bool)
    return is_number and abs(value) <= torch.finfo(torch.float32).max
