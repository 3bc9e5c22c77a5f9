"""Figures about held-out comparisons: accuracy with its interval, by part, and the baselines beside it."""

from __future__ import annotations

import math
import statistics
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


def accuracy_by_length_gap(right: Sequence[bool], heldout: Sequence[Comparison]) -> dict[str, dict[str, float | int]]:
    """`accuracy` of the pairs by len(chosen) - len(rejected) in characters, in `LENGTH_GAPS`."""
    return accuracy_by(right, [[_gap(len(pair.chosen) - len(pair.rejected))] for pair in heldout])


LENGTH_GAPS = (
    (-100, "shorter by over 100"),
    (-10, "shorter by 11 to 100"),
    (11, "within 10"),
    (101, "longer by 11 to 100"),
)


def _gap(gap: int) -> str:
    return next((name for end, name in LENGTH_GAPS if gap < end), "longer by over 100")


def reliability(differences: Sequence[float], temperature: float = 1.0, bins: int = 10) -> list[dict[str, float | int]]:
    """Stated against found: the pairs by the probability sigmoid(|d| / temperature) of the side that scores higher.

    Args:
        differences: score of the chosen reply minus that of the rejected one; 0 counts as half right.
        bins: equal parts of [0.5, 1]; empty ones are left out.

    Returns:
        A row a bin: `stated` (mean probability), `found` (share right), `pairs`.
    """
    groups: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for difference in differences:
        stated = 1 / (1 + math.exp(-min(abs(difference) / temperature, 700)))
        right = 0.5 if difference == 0 else float(difference > 0)
        groups[min(int((stated - 0.5) * 2 * bins), bins - 1)].append((stated, right))
    return [
        {
            "stated": math.fsum(s for s, _ in group) / len(group),
            "found": sum(r for _, r in group) / len(group),
            "pairs": len(group),
        }
        for _, group in sorted(groups.items())
    ]


def calibration_error(rows: Sequence[dict[str, float | int]]) -> float:
    """Expected calibration error (Guo et al. 2017): |found - stated| of `reliability`, weighed by pairs."""
    pairs = sum(row["pairs"] for row in rows)
    return sum(row["pairs"] * abs(row["found"] - row["stated"]) for row in rows) / pairs if pairs else float("nan")


def fit_temperature(differences: Sequence[float]) -> float:
    """T that minimises the mean of log(1 + exp(-d / T)) (temperature scaling of Guo et al. 2017).

    By bisection of the derivative in 1/T, of which the loss is convex. Between 0.001 and 1000; the upper end where no
    difference is worth anything, the lower where every pair is right.
    """

    def slope(inverse: float) -> float:
        return math.fsum(-d / (1 + math.exp(min(max(inverse * d, -700), 700))) for d in differences)

    low, high = 1e-3, 1e3
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def most_wrong(differences: Sequence[float], count: int) -> list[int]:
    """Indices of the pairs with the most negative differences, the worst first; none that are right."""
    wrong = [index for index, difference in enumerate(differences) if difference < 0]
    return sorted(wrong, key=lambda index: (differences[index], index))[:count]


def score_summary(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation (population), smallest, median and largest score of each side."""

    def of(scores: Sequence[float]) -> dict[str, float]:
        return {
            "mean": statistics.fmean(scores),
            "std": statistics.pstdev(scores),
            "min": min(scores),
            "median": statistics.median(scores),
            "max": max(scores),
        }

    return {"chosen": of(chosen), "rejected": of(rejected)}
