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


def clustered_wilson(right: Sequence[bool], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """`wilson` of the share of `right` with the number of independent answers in place of their number.

    That is n over the design effect (Kish 1965): the variance of the share over whole clusters, as of a ratio of sums,
    over p (1 - p) / n; never under 1, so that the interval is never narrower than Wilson's own. Where all answers are
    equal their number is that of the clusters.
    """
    n, correct = len(right), sum(right)
    groups: dict[Hashable, list[bool]] = defaultdict(list)
    for ok, cluster in zip(right, clusters, strict=True):
        groups[cluster].append(ok)
    if len(groups) == n:
        return wilson(correct, n)
    share, count = correct / n, len(groups)
    if count < 2 or correct in (0, n):
        return wilson(share * count, count)
    between = math.fsum((sum(own) - share * len(own)) ** 2 for own in groups.values())
    variance = count / (count - 1) * between / (n * n)
    independent = min(n, share * (1 - share) / variance) if variance else n
    return wilson(share * independent, independent)
