"""Held-out loss, in all and by category.

The loss is the mean over tokens with loss, in nats, whatever reduction training uses, so that it can be compared
between recipes. It comes from the loss sum and token count of every row, which the trainer gathers over all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import EvalPrediction


class LossByCategory:
    """`compute_metrics` of a trainer whose predictions are (loss sum, tokens with loss) of each row.

    Gives `loss` and `tokens`, and `loss/NAME` and `tokens/NAME` for each category; rows without one ("") count in the
    former alone.

    Args:
        categories: of the held-out rows, in their order.

    Raises:
        ValueError: when called with another number of rows.
    """

    def __init__(self, categories: Sequence[str]):
        self.categories = np.asarray(categories, dtype=object)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        sums_N2 = np.asarray(prediction.predictions, dtype=np.float64)
        if len(sums_N2) != len(self.categories):
            raise ValueError(f"{len(sums_N2)} rows were judged, but {len(self.categories)} have a category")
        figures = _mean(sums_N2, "")
        for name in sorted(set(self.categories.tolist()) - {""}):
            figures |= _mean(sums_N2[self.categories == name], f"/{name}")
        return figures


def _mean(sums_N2: np.ndarray, suffix: str) -> dict[str, float]:
    total, tokens = sums_N2.sum(axis=0)
    return {f"loss{suffix}": float(total / max(tokens, 1.0)), f"tokens{suffix}": int(tokens)}


def loss_figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Logged metrics (`eval_loss`, `eval_loss/NAME`, `eval_tokens/NAME`) as `heldout_loss` and `by_category`, a dict of
    `heldout_loss` and `heldout_tokens` a name."""
    head = "eval_loss/"
    names = [key.removeprefix(head) for key in metrics if key.startswith(head)]
    by_category = {
        name: {"heldout_loss": metrics[head + name], "heldout_tokens": metrics[f"eval_tokens/{name}"]} for name in names
    }
    return {"heldout_loss": metrics["eval_loss"], "by_category": by_category}
