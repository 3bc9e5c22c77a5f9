"""What the best of k replies is worth, for every k up to K, from K scored replies a prompt.

The expectation over all C(K, k) subsets, not over a draw of some: of K scores in ascending order, the i-th is the j-th
smallest of a subset of k with probability C(i-1, j-1) C(K-i, k-j) / C(K, k). For k = K that is the sample itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np


def subset_sizes(count: int) -> list[int]:
    """1, 2, 4, … and `count` itself."""
    return sorted({*(2**power for power in range(count.bit_length()) if 2**power <= count), count})


def order_weights(count: int, size: int, place: int) -> list[float]:
    """The probability of each of `count` scores in ascending order to be the `place`-th smallest (from 1) of a random
    subset of `size`."""
    return [comb(at - 1, place - 1) * comb(count - at, size - place) / comb(count, size) for at in range(1, count + 1)]


def best_of(scores: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Means over prompts, a row a subset size: `k`, `best` (the expected maximum of k replies), `median` and `gap`.

    Args:
        scores: of each prompt, the same number of scores; at least one prompt.
    """
    sorted_NK = np.sort(np.asarray(scores, dtype=np.float64), axis=1)
    mean_K = sorted_NK.mean(axis=0)
    count, rows = len(mean_K), []
    for size in subset_sizes(count):
        best = float(np.dot(mean_K, order_weights(count, size, size)))
        middles = {(size + 1) // 2, size // 2 + 1}  # one place where the size is odd, else two
        median = float(np.mean([np.dot(mean_K, order_weights(count, size, place)) for place in middles]))
        rows.append({"k": size, "best": best, "median": median, "gap": best - median})
    return rows
