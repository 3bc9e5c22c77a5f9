"""Figures about held-out comparisons: accuracy with its interval, by part, and the baselines beside it."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from align.evaluation.shares import clustered_wilson, wilson
from data_formats.records import Comparison

MOST_GRADES = 6


def accuracy(right: Sequence[bool], prompts: Sequence[Hashable] | None = None) -> dict[str, float | int]:
    """`accuracy`, `correct`, `pairs`, and the 95 % interval `accuracy_low`, `accuracy_high`.

    Args:
        prompts: what each pair was asked; pairs of one prompt are not counted as independent in the interval.
    """
    n, correct = len(right), sum(right)
    low, high = wilson(correct, n) if prompts is None else clustered_wilson(right, prompts)
    return {
        "accuracy": correct / n if n else float("nan"),
        "accuracy_low": low,
        "accuracy_high": high,
        "correct": correct,
        "pairs": n,
    }


def accuracy_by(
    right: Sequence[bool], names: Sequence[Iterable[str]], heldout: Sequence[Comparison]
) -> dict[str, dict[str, float | int]]:
    """`accuracy` of the pairs that carry each name, and the share `longer` of those whose longer reply is the chosen
    one (equal lengths count half); a pair may carry several names or none."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, own in enumerate(names):
        for name in own:
            groups[name].append(index)
    found = {}
    for name, indices in groups.items():
        own = [heldout[index] for index in indices]
        longer = sum(_longer(pair) for pair in own) / len(own)
        found[name] = accuracy([right[index] for index in indices], [pair.prompt for pair in own]) | {"longer": longer}
    return found


def _longer(pair: Comparison) -> float:
    gap = len(pair.chosen) - len(pair.rejected)
    return 0.5 * (gap == 0) + (gap > 0)


def grade_names(heldout: Sequence[Comparison]) -> list[list[str]]:
    """The grade of each pair as its part's name, none where it has none; of many grades, sixths from low to high."""
    grades = [pair.grade for pair in heldout]
    values = sorted(grade for grade in grades if grade is not None)
    known = sorted(set(values))
    if len(known) <= MOST_GRADES:
        return [[] if grade is None else [f"{grade:g}"] for grade in grades]
    ends = sorted({values[(len(values) - 1) * part // MOST_GRADES] for part in range(1, MOST_GRADES + 1)})
    starts = [known[0], *(next(value for value in known if value > end) for end in ends[:-1])]
    names = [f"{low:g}" if low == high else f"{low:g} to {high:g}" for low, high in zip(starts, ends, strict=True)]
    return [[] if grade is None else [names[bisect_left(ends, grade)]] for grade in grades]


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
    return accuracy_by(right, [[_gap(len(pair.chosen) - len(pair.rejected))] for pair in heldout], heldout)


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


def cross_fitted_error(differences: Sequence[float], prompts: Sequence[Hashable]) -> float:
    """`calibration_error` with each half of the prompts judged at the temperature fitted on the other half; NaN where
    one half is empty. On the pairs that a temperature was fitted on, the error would look smaller than it is."""
    order = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    halves = [[d for d, p in zip(differences, prompts, strict=True) if order[p] % 2 == half] for half in (0, 1)]
    if not all(halves):
        return float("nan")
    scaled = [d / fit_temperature(halves[1 - half]) for half in (0, 1) for d in halves[half]]
    return calibration_error(reliability(scaled))


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


def evaluation(heldout: Sequence[Comparison], chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, Any]:
    """Everything that scores of held-out pairs tell.

    `accuracy` and its interval; `by_tag`, `by_category`, `by_source`, `by_grade`, `by_length_gap` (`accuracy_by`);
    `accuracy_<tag>`; mean `margin`; `reliability` with its `calibration_error`; the best `temperature`, and the error
    that one has on pairs it was not fitted on; `scores` of both sides.

    Args:
        heldout: at least one pair.
        chosen, rejected: the scores of each pair's sides.
    """
    prompts = [pair.prompt for pair in heldout]
    gaps = [a - b for a, b in zip(chosen, rejected, strict=True)]
    right = [gap > 0 for gap in gaps]
    by_tag = accuracy_by(right, [pair.tags for pair in heldout], heldout)
    rows = reliability(gaps)
    return {
        **accuracy(right, prompts),
        **{f"accuracy_{tag}": part["accuracy"] for tag, part in by_tag.items()},
        "longer": sum(map(_longer, heldout)) / len(heldout),
        "margin": sum(gaps) / len(gaps),
        "by_tag": by_tag,
        "by_category": accuracy_by(right, [[pair.category] if pair.category else [] for pair in heldout], heldout),
        "by_source": accuracy_by(right, [[pair.source] if pair.source else [] for pair in heldout], heldout),
        "by_grade": accuracy_by(right, grade_names(heldout), heldout),
        "by_length_gap": accuracy_by_length_gap(right, heldout),
        "reliability": rows,
        "calibration_error": calibration_error(rows),
        "temperature": fit_temperature(gaps),
        "calibration_error_at_temperature": cross_fitted_error(gaps, prompts),
        "scores": score_summary(chosen, rejected),
    }
