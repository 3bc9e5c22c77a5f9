"""Scores of different units on one scale: a row's place in its set.

A reward is a logit without a zero of its own, a language model gives 1, 2 or 3, a loss ratio lies below 1, tags are
counted. What they share is an order, so each becomes the row's **quantile** in the set: the share of the rows below it,
and half of those level with it, (0, 1). It is the same whatever increasing function a scorer's unit is, no outlier
weighs more than its place, and rows that a coarse scorer cannot tell apart stay level.

Quality and difficulty are then **multiplied**, as Deita does (2312.15685: evol complexity times evol quality, of two
scores of 1 to 6) and Llama 3 says it ranks (2407.21783, section 4.2.3). Of quantiles the product is an "and": a row at
the bottom of either stays at the bottom, whatever the other says, where a sum would let a hard row of wrong answers
through. Departure from Deita: raw scores may not be multiplied here, since a reward's sign and zero mean nothing.

What is lost: distances, and the level of the set. A set of rubbish has a best quarter too; where a score has a meaning
of its own (points of a rubric) a limit on it says more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

NEIGHBOURS = 50  # rows on each side in the order of lengths
FEWEST_SHARE = 10  # of a small set, at most one row in so many on each side
TOP_SHARE = 0.25  # Llama 3's top quarter of a reward's scores

Scores = Sequence[float | None]


def quantiles(scores: Scores) -> list[float | None]:
    """The share of the other rows below each, those level with it as half: in (0, 1), 0.5 for the median.

    Rows without a score have none, and count for nothing.
    """
    at = [index for index, score in enumerate(scores) if score is not None]
    values = np.array([scores[index] for index in at], dtype=np.float64)
    ordered = np.sort(values)
    below, upto = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return _spread((below + upto) / (2 * max(len(at), 1)), at, len(scores))


def quantiles_at_length(scores: Scores, lengths: Sequence[float]) -> list[float | None]:
    """Each row's quantile among itself and the rows of about its length: `NEIGHBOURS` that are next shorter and as many
    that are next longer (near the ends more of the other side), in a small set a tenth of it.

    Whatever of a score its length explains, level and spread, is taken off without saying how it depends on it.
    """
    at = np.array([index for index, score in enumerate(scores) if score is not None], dtype=np.int64)
    if not len(at):
        return [None] * len(scores)
    order = at[np.argsort(np.array([lengths[index] for index in at]), kind="stable")]
    values = np.array([scores[index] for index in order], dtype=np.float64)
    aside = min(NEIGHBOURS, math.ceil(len(values) / FEWEST_SHARE))
    width = min(2 * aside + 1, len(values))
    windows = np.lib.stride_tricks.sliding_window_view(values, width)
    starts = np.clip(np.arange(len(values)) - aside, 0, len(values) - width)
    found = np.empty(len(values))
    for place in range(0, len(values), 1 << 14):  # a block of windows at a time: memory does not grow with the set
        part = slice(place, place + (1 << 14))
        near, own = windows[starts[part]], values[part, None]
        found[part] = ((near < own).sum(axis=1) + (near <= own).sum(axis=1)) / (2 * width)
    return _spread(found, order, len(scores))


def quality_times_difficulty(quality: Scores, difficulty: Scores) -> list[float | None]:
    """The product of the two quantiles of each row; None where one of them cannot be told."""
    pairs = zip(quantiles(quality), quantiles(difficulty), strict=True)
    return [None if good is None or hard is None else good * hard for good, hard in pairs]


def is_high_quality(scores: Scores, share: float = TOP_SHARE) -> list[bool]:
    """Whether a row is in the top `share` of those with a score. Of rows that are level all are in or none: they are
    where there is room for all of them, or nothing is better (full points, as of Llama 3, however many have them)."""
    ordered = np.sort(np.array([score for score in scores if score is not None], dtype=np.float64))
    values = [-math.inf if score is None else score for score in scores]
    as_good = (len(ordered) - np.searchsorted(ordered, values, "left")).tolist()  # or better
    room = share * len(ordered) + 1e-9
    best = as_good[int(np.argmax(values))] if values else 0
    return [score is not None and count <= max(room, best) for score, count in zip(scores, as_good, strict=True)]


def _spread(found: np.ndarray, at: Sequence[int] | np.ndarray, count: int) -> list[float | None]:
    spread: list[float | None] = [None] * count
    for index, value in zip(at, found.tolist(), strict=True):
        spread[index] = value
    return spread
