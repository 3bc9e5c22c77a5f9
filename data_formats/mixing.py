"""A mixture of sources by weight: seeded, without replacement, as large as it can be without repeating a record.

Weights are shares, up to a common factor. The size is the largest n at which every source still holds its share of n
records: the source that is scarcest for its weight is used whole, of the others a random part is taken. Nothing is
repeated; to see a source more than once, name it twice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_formats.errors import DataError, EmptyDatasetError


@dataclass(frozen=True, slots=True)
class Mixture:
    """The records, shuffled, and how many each source gave."""

    records: list[Any]
    drawn: list[int]


def mixture(sources: Sequence[Sequence[Any]], weights: Sequence[float | None], seed: int) -> Mixture:
    """Mix the records of several sources.

    Args:
        weights: one a source, above 0.
        seed: of the choice and the order; the same sources, weights and seed give the same mixture.

    Raises:
        DataError: a weight is missing or not above 0.
        EmptyDatasetError: a source holds no record.
    """
    if len(weights) != len(sources) or any(weight is None or not 0 < weight < float("inf") for weight in weights):
        raise DataError("either all sources of a mixture have a weight above 0 or none has", field="weight")
    empty = next((at for at, source in enumerate(sources) if not source), None)
    if empty is not None:
        raise EmptyDatasetError(f"source {empty + 1} of the mixture holds no record; remove it or its weight")
    size = min(len(source) / weight for source, weight in zip(sources, weights, strict=True) if weight)
    chooser, records, drawn = random.Random(f"mixture/{seed}"), [], []
    for source, weight in zip(sources, weights, strict=True):
        count = min(len(source), max(1, round(size * (weight or 0))))
        records += chooser.sample(list(source), count)
        drawn.append(count)
    chooser.shuffle(records)
    return Mixture(records, drawn)
