"""Which rows are kept: within a cluster greedily by worth, apart from better ones, under a budget. Plain numbers.

Llama 3 (2407.21783, section 4.2.3) goes through each cluster in the order of quality × difficulty and keeps what is
less alike than a limit to everything kept of it before. Deita (2312.15685, section 3.4) does so over the whole set,
under a budget. Here both are had: the order and the limit are a cluster's, the budget is shared out by `spread`. Where
no row is worth more than another, a cluster's most typical row is first, and each next one is the one that is least
like all before it (k-center greedy, Sener and Savarese 2018, 1708.00489): a budget cuts off what is most alike.

A row looks at the rows of its cluster alone: what is alike across a border of clusters may both stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from align.textmodels.vectors import unit_rows

Spread = Literal["proportional", "even", "best"]
KEPT, DUPLICATE, LOW, OVER, NOT_DRAWN = range(5)
REASONS = ("kept", "semantic duplicate", "low quality", "over the budget", "not drawn")
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Choice:
    """What became of N rows.

    Attributes:
        fate_N: index into `REASONS`.
        nearest_N: of the rows of its cluster that stood before it and were no duplicates, the most alike; -1: none.
        cosine_N: to that row, float32; NaN: none.
    """

    fate_N: np.ndarray
    nearest_N: np.ndarray
    cosine_N: np.ndarray

    @property
    def kept_N(self) -> np.ndarray:
        """Whether each is kept."""
        return self.fate_N == KEPT


def choose(
    vectors_ND: np.ndarray,
    clusters_N: np.ndarray,
    worth_N: np.ndarray | None,
    *,
    max_cosine: float,
    budget: int,
    spread: Spread = "proportional",
    low_N: np.ndarray | None = None,
) -> Choice:
    """Choose at most `budget` rows.

    Args:
        vectors_ND: rows of length 1, of any kind of float; may lie in a file.
        clusters_N: the cluster of each, from 0.
        worth_N: what it is worth; of equal ones the earlier goes first. None: the least alike go first.
        max_cosine: a row that is more alike than this to a better one of its cluster is a duplicate of it.
        budget: rows that are kept at most.
        spread: how the budget is shared out, see `quotas`; `best` gives it to the worthiest wherever they lie.
        low_N: rows that are not to be kept whatever there is room for.
    """
    count = len(clusters_N)
    fate_N = np.full(count, OVER, np.uint8)
    nearest_N, cosine_N = np.full(count, -1, np.int64), np.full(count, np.nan, np.float32)
    if low_N is not None:
        fate_N[low_N] = LOW
    known = worth_N is not None
    order = np.lexsort((np.arange(count), -worth_N if known else np.zeros(count), clusters_N))
    sizes = np.bincount(clusters_N) if count else np.zeros(0, np.int64)
    distinct: list[np.ndarray] = []
    for members in np.split(order, np.cumsum(sizes)[:-1]) if count else ():
        members = members[fate_N[members] != LOW]
        kept, near, cosine = (keep_apart if known else farthest_first)(unit_rows(vectors_ND[members]), max_cosine)
        fate_N[np.delete(members, kept)] = DUPLICATE
        has_near = near >= 0
        nearest_N[members[has_near]] = members[near[has_near]]
        cosine_N[members] = cosine
        distinct.append(members[kept])
    if spread == "best":
        kept = _best(distinct, worth_N)[:budget]
    else:
        there = np.array([len(one) for one in distinct], np.int64)
        best = None if worth_N is None else np.array([worth_N[one[0]] if len(one) else -np.inf for one in distinct])
        shares = quotas(there, sizes, budget, spread, best)
        first = (one[:share] for one, share in zip(distinct, shares, strict=True))
        kept = np.concatenate([np.zeros(0, np.int64), *first])
    fate_N[kept] = KEPT
    return Choice(fate_N, nearest_N, cosine_N)


def _best(distinct: list[np.ndarray], worth_N: np.ndarray | None) -> np.ndarray:
    """The rows of all clusters by worth, else the first of each cluster, then the second ones, and so on."""
    nothing = np.zeros(0, np.int64)
    every = np.concatenate([nothing, *distinct])
    places = np.concatenate([nothing, *(np.arange(len(one)) for one in distinct)])
    return every[np.lexsort((every, places if worth_N is None else -worth_N[every]))]


def keep_apart(vectors_MD: np.ndarray, max_cosine: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go through rows in order and keep each that is no more alike than `max_cosine` to all that are kept before it.

    Args:
        vectors_MD: float32, rows of length 1.

    Returns:
        Those that are kept, in order; of each row (M,) the most alike of those kept before it, -1: none, and its
        cosine, NaN.
    """
    count = len(vectors_MD)
    near, cosine = np.full(count, -1, np.int64), np.full(count, np.nan, np.float32)
    kept = np.zeros(0, np.int64)
    for start in range(0, count, BLOCK):
        block = vectors_MD[start : start + BLOCK]
        best, where = _most_alike(block, vectors_MD, kept)
        own = np.clip(block @ block.T, -1, 1)
        mine: list[int] = []
        for at in range(len(block)):
            alike = own[at, mine]
            if len(mine) and alike.max() > best[at]:
                place = int(alike.argmax())
                best[at], where[at] = alike[place], start + mine[place]
            if best[at] <= max_cosine:
                mine.append(at)
            if where[at] >= 0:
                near[start + at], cosine[start + at] = where[at], best[at]
        kept = np.concatenate([kept, np.array(mine, np.int64) + start])
    return kept, near, cosine


def farthest_first(vectors_MD: np.ndarray, max_cosine: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the most typical row, and then always the one that is least like all that are kept, as long as that is no
    more alike to one of them than `max_cosine`; of equal ones the earlier. As `keep_apart` otherwise."""
    count = len(vectors_MD)
    near, cosine = np.full(count, -1, np.int64), np.full(count, -2.0, np.float32)
    kept, left = [], np.ones(count, bool)
    at = int((vectors_MD @ vectors_MD.mean(0)).argmax()) if count else -1
    while at >= 0:
        kept.append(at)
        left[at] = False
        alike = np.clip(vectors_MD @ vectors_MD[at], -1, 1)
        nearer = left & (alike > cosine)
        near[nearer], cosine[nearer] = at, alike[nearer]
        at = int(np.where(left, cosine, np.inf).argmin())
        at = at if left[at] and cosine[at] <= max_cosine else -1
    return np.array(kept, np.int64), near, np.where(near < 0, np.nan, cosine)


def _most_alike(block: np.ndarray, vectors_MD: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest cosine of each row of a block to the rows `kept`, and which row that is; -2 and -1 where none is."""
    best, where = np.full(len(block), -2.0, np.float32), np.full(len(block), -1, np.int64)
    for start in range(0, len(kept), 8 * BLOCK):
        some = kept[start : start + 8 * BLOCK]
        alike = np.clip(block @ vectors_MD[some].T, -1, 1)
        place = alike.argmax(1)
        value = alike[np.arange(len(block)), place]
        better = value > best
        best[better], where[better] = value[better], some[place[better]]
    return best, where


def quotas(
    there: np.ndarray, sizes: np.ndarray, budget: int, spread: Spread, best: np.ndarray | None = None
) -> np.ndarray:
    """How many rows of each cluster are kept: together `budget`, or all where there are not so many.

    Args:
        there: rows of each that may be kept.
        sizes: rows of each before any was dropped.
        budget: rows in all.
        spread: `proportional`: by size; `even`: alike. Fractions go to the largest remainders, of equal ones to the
            larger cluster, of as large ones to that with the better first row, and what a cluster has not goes to the
            others by the same rule.
        best: what each one's first row is worth; so many clusters of one row are kept by worth.
    """
    best = np.zeros(len(there)) if best is None else best
    found = np.zeros(len(there), np.int64)
    budget = min(budget, int(there.sum()))
    while (left := budget - int(found.sum())) > 0:
        weight = np.where(found < there, sizes if spread == "proportional" else 1, 0)
        wanted = left * weight / weight.sum()
        step = np.floor(wanted).astype(np.int64)
        by_remainder = np.lexsort((np.arange(len(there)), -best, -sizes, step - wanted))
        step[by_remainder[: left - int(step.sum())]] += 1
        found += np.minimum(step, there - found)
    return found
