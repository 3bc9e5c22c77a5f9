"""How well the scores of a reward model state probabilities: P(chosen is better) = sigmoid(difference / temperature).

The temperature that is reported for use is fitted on all pairs. What it is worth is told by cross-fitting, since judged
on the pairs that it was fitted on a temperature looks better than it is.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

Rows = list[dict[str, float | int]]


def reliability(differences: Sequence[float], bins: int = 10) -> Rows:
    """Stated against found: the pairs by the probability sigmoid(|d|) of the side that scores higher.

    Args:
        differences: score of the chosen reply minus that of the rejected one; 0 counts as half right. Divided by a
            temperature, they are judged at it.
        bins: equal parts of [0.5, 1]; empty ones are left out.

    Returns:
        A row a bin: `stated` (mean probability), `found` (share right), `pairs`.
    """
    groups: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for difference in differences:
        stated = 1 / (1 + math.exp(-min(abs(difference), 700)))
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
    """Expected calibration error (Guo et al. 2017, eq. 3): |found - stated| of `reliability`, weighed by pairs."""
    pairs = sum(row["pairs"] for row in rows)
    return sum(row["pairs"] * abs(row["found"] - row["stated"]) for row in rows) / pairs if pairs else float("nan")


def fit_temperature(differences: Sequence[float]) -> float:
    """T that minimises the mean of log(1 + exp(-d / T)) (Guo et al. 2017, section 4.2).

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


def cross_fitted(differences: Sequence[float], keys: Sequence[str]) -> list[float] | None:
    """Each difference divided by the temperature that was fitted on the other half of the prompts.

    Args:
        differences: score of the chosen reply minus that of the rejected one.
        keys: what tells the prompt of each pair; pairs of one prompt are in one half.

    Returns:
        The scaled differences in the same order; None where all pairs have one prompt.
    """
    half = halves(keys)
    if len(set(half.values())) < 2:
        return None
    own = [half[key] for key in keys]
    fitted = [fit_temperature([d for d, at in zip(differences, own, strict=True) if at == side]) for side in (0, 1)]
    return [d / fitted[1 - at] for d, at in zip(differences, own, strict=True)]


def halves(keys: Sequence[str]) -> dict[str, int]:
    """Key -> 0 or 1: the distinct keys in the order of a hash, alternately.

    The hash is not the one of `data_formats.splitting`, by which held-out prompts are chosen: all of them lie at one
    end of that.
    """
    ordered = sorted(set(keys), key=lambda key: (_hash(key), key))
    return {key: at % 2 for at, key in enumerate(ordered)}


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8, person=b"halves").digest()
