"""Mixtures: how many records of each source, and which.

`mixture` is by weight: seeded, without replacement, as large as it can be without repeating a record. Weights are
shares, up to a common factor. The size is the largest n at which every source still holds its share of n records: the
source that is scarcest for its weight is used whole, of the others a random part is taken.

`repeated` is by epochs: all of a source so many times, and a random part of it once more for what is left. `tempered`
gives shares by size: those of multilingual pretraining (XLM: Conneau and Lample 2019, 1901.07291, section 3.1, whose
exponent is 1 / temperature; mT5: Xue et al. 2021, 2010.11934, section 3.2). `Dealer` turns shares into whole rows, step
after step.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
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


def repeated(size: int, epochs: float, seed: str) -> list[int]:
    """Indices below `size`, each as often as `epochs` says, and those of a random part, drawn by `seed`, once more
    where it is not whole: 2.5 epochs of 4 are each twice and two of them a third time."""
    whole = int(epochs)
    part = random.Random(seed).sample(range(size), round((epochs - whole) * size))
    return [*range(size)] * whole + sorted(part)


def tempered(sizes: Mapping[str, int], temperature: float) -> dict[str, float]:
    """Shares that go with `size ** (1 / temperature)` and sum to 1: 1 is by size, more lifts what is small, and in the
    end all are equal."""
    largest = max(sizes.values())
    lifted = {name: (size / largest) ** (1 / temperature) for name, size in sizes.items()}
    total = sum(lifted.values())
    return {name: one / total for name, one in lifted.items()}


class Dealer:
    """Deals whole rows by shares. What a step owes a part is carried over to the next, and whoever is owed most is
    served first, so that counts stay within a row or two of what the shares come to, however long it goes on.

    Args:
        names: of the parts; of two that are owed the same the first one is served.
    """

    def __init__(self, names: Sequence[str]):
        self.owed = dict.fromkeys(names, 0.0)

    def deal(self, rows: int, shares: Mapping[str, float]) -> dict[str, int]:
        """How many of the next `rows` each part gives.

        Args:
            shares: of each part, their sum 1.
        """
        for name in self.owed:
            self.owed[name] += rows * shares[name]
        dealt = {name: max(0, int(owed + 1e-9)) for name, owed in self.owed.items()}
        while (left := rows - sum(dealt.values())) != 0:
            rest = {name: self.owed[name] - dealt[name] for name in dealt if left > 0 or dealt[name]}
            one = 1 if left > 0 else -1
            dealt[max(rest, key=lambda name: one * round(rest[name], 9))] += one
        for name, count in dealt.items():
            self.owed[name] -= count
        return dealt
