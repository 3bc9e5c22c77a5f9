"""Joining the sums that losses report, over micro-batches or ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from align.functional.masked import Moments


def merge_stats(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Adds each key over the parts; keys ending in `_max` or `_min` take the largest or smallest instead.

    A key need not be in every part. No parts give an empty dict.
    """
    merged: dict[str, Tensor] = {}
    for part in parts:
        for key, figure in part.items():
            if key not in merged:
                merged[key] = figure
            elif key.endswith("_max"):
                merged[key] = torch.maximum(merged[key], figure)
            elif key.endswith("_min"):
                merged[key] = torch.minimum(merged[key], figure)
            else:
                merged[key] = merged[key] + figure
    return merged


def explained_variance(squared_error_sum: Tensor | float, returns: Moments) -> float:
    """`1 - mean squared error / variance of the returns`: 1 perfect, 0 as good as the mean, below 0 worse.

    0 when the returns do not vary, where it is undefined.
    """
    spread = float(returns.var * returns.count)
    return 1.0 - float(squared_error_sum) / spread if spread > 0 else 0.0
