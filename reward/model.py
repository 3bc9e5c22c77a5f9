"""The reward model: score = head(hidden state at the end token) - shift.

The Qwen report (3.2.1) adds a "pooling layer" that reads the reward at a special end token and says no more. Here: the
state at the last position the mask counts, which the collators make `<|im_end|>` (Bai et al. 2022, A.2 report that an
end token helps), through one bias-free linear unit. The position comes from the mask, never from comparing ids with the
pad id. `shift` makes reference replies average 0 ("N implementation details": demonstrations score 0 on average).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reward.errors import ModelFileError
from reward.head import ScalarHead
from reward.headed import HeadedModel

POOLING = "end_token"


def last_counted(attention_mask_BT: Tensor) -> Tensor:
    """Index (B,) of the last 1 of each row of a mask; 0 for a row without any."""
    positions_T = torch.arange(attention_mask_BT.shape[-1], device=attention_mask_BT.device)
    return ((attention_mask_BT != 0) * positions_T).amax(-1)


class RewardModel(HeadedModel):
    """Scores sequences that end at the end token; higher is better. Unit: the logit of being preferred."""

    settings_file: ClassVar[str] = "reward_config.json"
    zero_head: ClassVar[bool] = False

    def __init__(self, backbone: nn.Module, head: ScalarHead | None = None, shift: float = 0.0):
        super().__init__(backbone, head)
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32, device=self.device))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Scores (B,) in float32.

        Args:
            input_ids: (B, T), padded on either side with any id.
            attention_mask: (B, T), 1 = a token of the sequence; each row has at least one.
            position_ids: (B, T); made from the mask by default.
        """
        states_BTd = self.states(input_ids, attention_mask, position_ids)
        rows_B = torch.arange(states_BTd.shape[0], device=states_BTd.device)
        return self.head(states_BTd[rows_B, last_counted(attention_mask).to(states_BTd.device)]) - self.shift

    def _apply(self, fn, recurse=True):
        shift = self.shift
        super()._apply(fn, recurse)
        if self.shift.dtype != shift.dtype:
            self.shift = shift.to(self.shift.device)
        return self

    def settings(self) -> dict[str, Any]:
        """Pooling and shift."""
        return {"pooling": POOLING, "shift": float(self.shift)}

    def take_settings(self, settings: dict[str, Any], path: Path) -> None:
        """Pooling and shift; an unknown pooling is an error, a missing shift too."""
        shift = settings.get("shift")
        if settings.get("pooling") != POOLING:
            raise ModelFileError(f"{path}: 'pooling' is {settings.get('pooling')!r}, known is {POOLING!r}")
        if not isinstance(shift, float | int) or not math.isfinite(shift):
            raise ModelFileError(f"{path}: 'shift' must be a finite number, found {shift!r}")
        self.shift.fill_(shift)
