"""Reward normalisation by a running mean (Qwen report 3.2.2: "the reward is normalised based on the running mean").

Whether the report also divides by a deviation is not said; here it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reward.protocol import RewardError


class RunningMean:
    """Mean of every value ever counted in, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0

    @property
    def mean(self) -> float:
        """The mean so far, 0 before the first value."""
        return self.total / self.count if self.count else 0.0

    def update(self, values: Tensor, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        """Count in the whole global batch, before any of it is normalised.

        Args:
            values: this rank's values, any shape, possibly none.
            reduce: sums a float64 tensor over ranks (all ranks must call); None on one process.

        Raises:
            RewardError: on every rank alike, when any rank's values hold NaN or infinity; the mean is then unchanged.
        """
        values = values.detach().double()
        stats_2 = torch.stack([values.new_tensor(float(values.numel())), values.sum()])
        count, total = (reduce(stats_2) if reduce is not None else stats_2).tolist()
        if not math.isfinite(total):
            raise RewardError("rewards hold NaN or infinity, so they cannot enter the running mean")
        self.count += round(count)
        self.total += total

    def normalize(self, values: Tensor) -> Tensor:
        """`values` minus the mean, same shape and dtype."""
        return values - self.mean

    def state_dict(self) -> dict[str, Any]:
        """Count and sum as plain numbers."""
        return {"count": self.count, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.count, self.total = int(state["count"]), float(state["total"])
