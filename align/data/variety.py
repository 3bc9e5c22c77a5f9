"""How diverse and how complex a set is by its tags (InsTag, Lu et al. 2023, 2308.07074, section 3).

Diversity is the number of different tags, complexity the mean number of tags a row. Both have an interval: of another
set of so many rows drawn from where these come from. That of diversity is Colwell et al.'s (2012, J. Plant Ecology 5,
formula 5, at the sample's own size): its variance is S (1 - S / E), where E is Chao's (1987) lower bound of the number
of all tags there, seen or not. Where every tag was seen more than once, nothing is expected to be missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from align.runtime.terminal import shortened

Z95 = 1.959963984540054
Interval = tuple[float, float]


class Variety:
    """What is counted of rows' tags, row after row.

    Attributes:
        rows: that were counted; `tagged`: that have a tag.
        counts: in how many rows each tag stands.
    """

    def __init__(self, tags: Iterable[Sequence[str]] = ()):
        self.rows, self.tagged, self.counts = 0, 0, Counter[str]()
        self._squares = 0
        for own in tags:
            self.add(own)

    def add(self, tags: Sequence[str]) -> None:
        """Counts a row with its tags, each once."""
        own = set(tags)
        self.rows += 1
        self.tagged += bool(own)
        self.counts.update(own)
        self._squares += len(own) ** 2

    @property
    def diversity(self) -> int:
        """The number of different tags."""
        return len(self.counts)

    @property
    def diversity_interval(self) -> Interval:
        """95 % of the number of different tags in so many rows."""
        seen, by_rows = len(self.counts), Counter(self.counts.values())
        once, twice = by_rows[1], by_rows[2]
        unseen = (self.rows - 1) / self.rows * once * (once - 1) / (2 * (twice + 1)) if self.rows else 0.0
        half = Z95 * math.sqrt(seen * unseen / (seen + unseen)) if seen else 0.0
        return max(seen - half, 0.0), seen + half

    @property
    def complexity(self) -> float:
        """The mean number of different tags a row; 0 without rows."""
        return sum(self.counts.values()) / self.rows if self.rows else 0.0

    @property
    def complexity_interval(self) -> Interval:
        """95 % of the mean, by its standard error; the mean itself where there is no second row."""
        mean, number = self.complexity, self.rows
        if number < 2:
            return mean, mean
        variance = max(self._squares - number * mean * mean, 0.0) / (number - 1)
        half = Z95 * math.sqrt(variance / number)
        return max(mean - half, 0.0), mean + half

    def figures(self, most: int = 0) -> dict[str, Any]:
        """Both figures with their intervals, as JSON, and the rows of the most frequent tags."""
        return {
            "diversity": self.diversity,
            "diversity_interval": list(self.diversity_interval),
            "complexity": self.complexity,
            "complexity_interval": list(self.complexity_interval),
            "rows_without": self.rows - self.tagged,
            "most": dict(self._most(most)),
        }

    def _most(self, number: int) -> list[tuple[str, int]]:
        return sorted(self.counts.items(), key=lambda one: (-one[1], one[0]))[:number]

    def describe(self, vocabulary: int = 0, most: int = 0) -> str:
        """`812 different tags (770 to 854), 12.3 % of a vocabulary of 6600; 3.10 a row (2.95 to 3.25)`.

        Args:
            vocabulary: how many tags there are at all.
            most: say the most frequent ones.
        """
        low, high = self.diversity_interval
        said = f"{self.diversity} different tags ({low:.0f} to {high:.0f})"
        if vocabulary:
            said += f", {100 * self.diversity / vocabulary:.1f} % of a vocabulary of {vocabulary}"
        low, high = self.complexity_interval
        said += f"; {self.complexity:.2f} a row ({low:.2f} to {high:.2f})"
        if self.tagged < self.rows:
            said += f", {self.rows - self.tagged} of {self.rows} rows without any"
        shown = ", ".join(f"{shortened(tag)} {count}" for tag, count in self._most(most))
        return said + (f"; most often: {shown}" if shown else "")
