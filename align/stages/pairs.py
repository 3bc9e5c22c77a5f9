"""Figures about held-out comparisons: accuracy with its interval, by part, and the baselines beside it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from data_formats.records import Comparison

Z95 = 1.959963984540054


def wilson(correct: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927); (0, 1) when `n` is 0."""
    if n == 0:
        return 0.0, 1.0
    share, spread = correct / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return (middle - half if correct else 0.0), (middle + half if correct < n else 1.0)


def accuracy(right: Sequence[bool]) -> dict[str, float | int]:
    """`accuracy`, `correct`, `pairs`, and the 95 % interval `accuracy_low`, `accuracy_high`."""
    n, correct = len(right), sum(right)
    low, high = wilson(correct, n)
    return {
        "accuracy": correct / n if n else float("nan"),
        "accuracy_low": low,
        "accuracy_high": high,
        "correct": correct,
        "pairs": n,
    }


def accuracy_by(right: Sequence[bool], names: Sequence[Iterable[str]]) -> dict[str, dict[str, float | int]]:
    """`accuracy` of the pairs that carry each name; a pair may carry several or none."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for ok, own in zip(right, names, strict=True):
        for name in own:
            groups[name].append(ok)
    return {name: accuracy(group) for name, group in sorted(groups.items())}


def _rule_accuracy(
    train: Sequence[Comparison], heldout: Sequence[Comparison], feature: Callable[[Comparison], float]
) -> float:
    """Accuracy of "the side with the larger feature wins", or the smaller where that did better in training.

    `feature` is larger than 0 when the chosen side has more of it; 0 is a coin toss and counts one half.
    """

    def share(comparisons: Sequence[Comparison]) -> float:
        values = [feature(comparison) for comparison in comparisons]
        return sum(0.5 * (value == 0) + (value > 0) for value in values) / max(len(values), 1)

    return share(heldout) if share(train) >= 0.5 else 1 - share(heldout)


def length_baseline(train: Sequence[Comparison], heldout: Sequence[Comparison]) -> float:
    """Held-out accuracy of choosing by length in characters alone, longer or shorter as the training pairs say."""
    return _rule_accuracy(train, heldout, lambda pair: len(pair.chosen) - len(pair.rejected))


def majority_baseline(train: Sequence[Comparison], heldout: Sequence[Comparison]) -> float:
    """Held-out accuracy of always answering the side that won more often in training.

    Records have no left and right, so the reply that comes first in the alphabet counts as the left one.
    """
    return _rule_accuracy(train, heldout, lambda pair: (pair.chosen < pair.rejected) - (pair.chosen > pair.rejected))
