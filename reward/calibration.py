"""The zero point and unit of a reward model: reference replies average 0, and optionally have variance 1.

"N implementation details of RLHF with PPO": scores of reference replies are normalised to mean 0 (and variance 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from data_formats.errors import EmptyDatasetError
from reward.errors import FlatScoresError
from reward.model import RewardModel


@torch.no_grad()
def score_moments(model: torch.nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> tuple[float, float]:
    """Mean and standard deviation (population) of the scores in evaluation mode, in float64, over batches of
    `input_ids` and `attention_mask`.

    Raises:
        EmptyDatasetError: no row at all.
    """
    training = model.training
    device = next(model.parameters()).device
    found: list[float] = []
    model.eval()
    try:
        for batch in batches:
            found += model(batch["input_ids"].to(device), batch["attention_mask"].to(device)).double().tolist()
    finally:
        model.train(training)
    if not found:
        raise EmptyDatasetError("no reference reply to calibrate the reward model's zero point with")
    mean = math.fsum(found) / len(found)
    return mean, math.sqrt(math.fsum((score - mean) ** 2 for score in found) / len(found))


def mean_score(model: torch.nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """The mean of `score_moments`."""
    return score_moments(model, batches)[0]


@torch.no_grad()
def center(model: RewardModel, batches: Iterable[Mapping[str, Tensor]], *, unit_variance: bool = False) -> float:
    """Move `model.shift` so that `batches` average 0, and `model.scale` so that their variance is 1 where asked.

    Returns:
        The mean they had before.

    Raises:
        FlatScoresError: unit variance of scores that are all equal; the model is unchanged.
    """
    mean, deviation = score_moments(model, batches)
    if unit_variance and not deviation > 0:
        raise FlatScoresError("unit_variance: all reference replies have the same score; set unit_variance to false")
    model.shift += mean * float(model.scale)
    if unit_variance:
        model.scale *= deviation
    return mean
