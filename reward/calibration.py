"""The zero point of a reward model: shift scores so that reference replies average 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from data_formats.errors import EmptyDatasetError
from reward.model import RewardModel


@torch.no_grad()
def mean_score(model: torch.nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """Mean score, accumulated in float64, over batches of `input_ids` and `attention_mask`, in evaluation mode.

    Raises:
        EmptyDatasetError: no row at all.
    """
    training = model.training
    device = next(model.parameters()).device
    total, count = 0.0, 0
    model.eval()
    try:
        for batch in batches:
            scores_B = model(batch["input_ids"].to(device), batch["attention_mask"].to(device))
            total += scores_B.double().sum().item()
            count += scores_B.numel()
    finally:
        model.train(training)
    if not count:
        raise EmptyDatasetError("no reference reply to calibrate the reward model's zero point with")
    return total / count


def center(model: RewardModel, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """Move `model.shift` so that `batches` average 0; returns the mean they had before."""
    mean = mean_score(model, batches)
    model.shift += mean
    return mean
