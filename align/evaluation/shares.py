"""Intervals of shares: Wilson's, also where answers to the same prompt hang together. Pure Python."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

Z95 = 1.959963984540054


def wilson(correct: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927); (0, 1) when `n` is 0."""
    if n == 0:
        return 0.0, 1.0
    share, spread = correct / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(max(share * (1 - share), 0.0) / n + spread / (4 * n))
    return (max(middle - half, 0.0) if correct else 0.0), (min(middle + half, 1.0) if correct < n else 1.0)


def clustered_wilson(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """`wilson` of the mean of `values`, each right (1), wrong (0) or between (a tie: 0.5), with what they are worth in
    `independent` ones in place of their number."""
    number = independent(values, clusters)
    return wilson(math.fsum(values) / len(values) * number, number)


def independent(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """How many independent rights and wrongs have a mean that varies as that of `values` does, whose clusters hang
    together.

    That is n, times share (1 - share) over the values' own variance (1 without ties, which vary less), over the design
    effect (Kish 1965): the variance of the mean over whole clusters, as of a ratio of sums, over that of as many
    independent values; never under 1. Where all values are equal their number is that of the clusters.
    """
    n, total = len(values), math.fsum(values)
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        groups[cluster].append(value)
    share, count = total / n, len(groups)
    spread = math.fsum((value - share) ** 2 for value in values) / n
    if count < 2 or not spread:
        return count
    between = math.fsum((math.fsum(own) - share * len(own)) ** 2 for own in groups.values()) / n
    effect = 1.0 if count == n else max(count / (count - 1) * between / spread, 1.0)
    return n * share * (1 - share) / (spread * effect)
