"""Reward normalisation by a running mean (Qwen report 3.2.2: "the reward is normalised based on the running mean"), and
by a running mean and standard deviation.

Whether the report also divides by a deviation is not said; `RunningMean` does not. `RunningMeanStd` does: Llama 2
(section 3.2.3) whitens the scores of each batch, here their statistics run over the whole training. Both count the
whole global batch in before any of it is normalised, and both are the same on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from reward.protocol import RewardError

Reduce = Callable[[Tensor], Tensor]


class RunningStats(Protocol):
    """What `RunningMean` and `RunningMeanStd` have in common."""

    def update(self, values: Tensor, reduce: Reduce | None = None) -> None:
        """Count in the whole global batch."""
        ...

    def normalize(self, values: Tensor) -> Tensor:
        """The values on the common scale."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        ...


class RunningMean:
    """Mean of every value ever counted in, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0

    @property
    def mean(self) -> float:
        """The mean so far, 0 before the first value."""
        return self.total / self.count if self.count else 0.0

    def update(self, values: Tensor, reduce: Reduce | None = None) -> None:
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


class RunningMeanStd:
    """Mean and population standard deviation of every value ever counted in, in float64.

    A batch's mean and sum of squared deviations are computed in two passes over the ranks, then merged into the running
    ones by the pairwise formula of Chan, Golub and LeVeque (1983): exact in exact arithmetic, and without the
    cancellation that sums of squares would have.

    Args:
        eps: added to the deviation that values are divided by, in the reward's unit. A deviation that is not above it
            (nothing counted yet, or equal scores only) divides nothing.
        shift: whether `normalize` subtracts the mean; without, the sign of a value stays.
    """

    def __init__(self, eps: float = 1e-8, shift: bool = True) -> None:
        self.eps, self.shift = eps, shift
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0  # sum of squared deviations from `mean`

    @property
    def std(self) -> float:
        """The population standard deviation so far, 0 before the second value."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def update(self, values: Tensor, reduce: Reduce | None = None) -> None:
        """Count in the whole global batch, before any of it is normalised.

        Args:
            values: this rank's values, any shape, possibly none.
            reduce: sums a float64 tensor over ranks (all ranks must call, it is asked twice); None on one process.

        Raises:
            RewardError: on every rank alike, when any rank's values hold NaN or infinity; nothing is changed then.
        """
        over_ranks = reduce or (lambda tensor: tensor)
        values = values.detach().double()
        count, total = over_ranks(torch.stack([values.new_tensor(float(values.numel())), values.sum()])).tolist()
        mean = total / count if count else 0.0
        squares = over_ranks((values - mean).square().sum()[None]).item()
        if not (math.isfinite(total) and math.isfinite(squares)):
            raise RewardError("rewards hold NaN or infinity, so they cannot enter the running mean and deviation")
        if not count:
            return
        whole, delta = self.count + round(count), mean - self.mean
        self.squares += squares + delta * delta * self.count * count / whole
        self.mean += delta * count / whole
        self.count = whole

    def normalize(self, values: Tensor) -> Tensor:
        """`(values - mean) / (std + eps)`, or without the mean; same shape and dtype."""
        moved = values - (self.mean if self.shift else 0.0)
        return moved / (self.std + self.eps) if self.std > self.eps else moved

    def state_dict(self) -> dict[str, Any]:
        """Count, mean and sum of squared deviations as plain numbers."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.count = int(state["count"])
        self.mean, self.squares = float(state["mean"]), float(state["squares"])
