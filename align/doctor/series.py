"""A logged figure over the steps, and the few questions that rules ask of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise

SURE = 3.0  # standard errors: what moves less is taken for noise


@dataclass(frozen=True, slots=True)
class Growth:
    """The means of the first and the last third, and whether they differ by more than noise."""

    before: float
    after: float
    sure: bool

    @property
    def up(self) -> bool:
        """Surely higher."""
        return self.sure and self.after > self.before

    @property
    def down(self) -> bool:
        """Surely lower."""
        return self.sure and self.after < self.before


@dataclass(frozen=True, slots=True)
class Series:
    """Values in order of steps, all finite."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def mean(self) -> float:
        """Of all values; there must be one."""
        return statistics.fmean(self.values)

    @property
    def median(self) -> float:
        """Of all values; there must be one."""
        return statistics.median(self.values)

    @property
    def error(self) -> float:
        """The standard error of the mean, taking the values for independent; 0 for a single one."""
        return statistics.stdev(self.values) / math.sqrt(len(self)) if len(self) > 1 else 0.0

    @property
    def noise(self) -> float:
        """The standard deviation around a slow trend: from neighbours' differences (von Neumann 1941), least three."""
        differences = self.differences()
        return math.sqrt(statistics.fmean(step * step for step in differences) / 2) if len(differences) > 1 else 0.0

    @property
    def span(self) -> str:
        """`steps 3 to 9`, `step 3`."""
        return f"steps {self.steps[0]} to {self.steps[-1]}" if len(self) > 1 else f"step {self.steps[0]}"

    def part(self, start: int, stop: int | None = None) -> Series:
        """By position, as a slice."""
        return Series(self.steps[start:stop], self.values[start:stop])

    def first(self, share: float) -> Series:
        """The first `share` of the points, at least one."""
        return self.part(0, max(1, math.ceil(share * len(self))))

    def last(self, share: float) -> Series:
        """The last `share` of the points, at least one."""
        return self.part(-max(1, math.ceil(share * len(self))))

    def where(self, test: Callable[[float], bool]) -> Series:
        """The points that pass."""
        kept = [point for point in zip(self.steps, self.values, strict=True) if test(point[1])]
        return Series(tuple(step for step, _ in kept), tuple(value for _, value in kept))

    def at(self, steps: Collection[int]) -> Series:
        """The points at these steps."""
        kept = [point for point in zip(self.steps, self.values, strict=True) if point[0] in steps]
        return Series(tuple(step for step, _ in kept), tuple(value for _, value in kept))

    def stretch(self, test: Callable[[float], bool]) -> Series:
        """The longest row of neighbouring points that all pass; empty when none does."""
        best, start = (0, 0), 0
        for at in range(len(self) + 1):
            if at == len(self) or not test(self.values[at]):
                best = max(best, (at - start, -start))
                start = at + 1
        return self.part(-best[1], best[0] - best[1])

    def growth(self) -> Growth:
        """From the first third to the last."""
        before, after = self.first(1 / 3), self.last(1 / 3)
        error = self.noise * math.sqrt(1 / len(before) + 1 / len(after))
        return Growth(before.mean, after.mean, abs(after.mean - before.mean) > SURE * error)

    def differences(self) -> tuple[float, ...]:
        """Each value less the one before it."""
        return tuple(new - old for old, new in pairwise(self.values))


def correlation(first: tuple[float, ...], second: tuple[float, ...]) -> float | None:
    """Pearson's; None for fewer than 8 pairs, or where one of the two does not vary."""
    if len(first) < 8:
        return None
    try:
        return statistics.correlation(first, second)
    except statistics.StatisticsError:
        return None
