"""What the second of two models would win if its replies were as long as the first one's.

As in AlpacaEval 2 (Dubois et al. 2024) that is a logistic regression of the verdict, a tie as a half, on tanh of the
difference of lengths in characters over its standard deviation, read where that is 0. Theirs has a third term, each
prompt's difficulty, which comes from a pool of many models' verdicts and is not to be had for two; and it is held near
a baseline gamed by length, by an L1 penalty chosen in cross-validation.

Here the likelihood is weighed with Jeffreys' prior (Firth 1993), so that it has an answer even where length alone
tells the verdicts apart; and the interval is that of the profile of the penalised likelihood
(Heinze and Schemper 2002), which is wide where no two replies were nearly as long, instead of a multiple of a standard
error, which is next to nothing there. Judgments count as what all of them are worth in independent ones
(`align.evaluation.shares.independent`), but not as more: many ties vary less, and the curve fits them less well.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from align.evaluation.shares import Z95, independent

FARTHEST = 30.0  # log-odds that are looked at: shares from 1e-13 on
STEEPEST = 10 * FARTHEST  # of length's weight


def at_equal_length(
    worth: Sequence[float], prompts: Sequence[Hashable], longer: Sequence[int | None]
) -> dict[str, float] | None:
    """The share at equal lengths.

    Args:
        worth: of each judgment to the second model: 1 a win, 0.5 a tie, 0 a loss.
        prompts: which one it is on; those of the same hang together.
        longer: length of the second reply minus that of the first; None: not known.

    Returns:
        `win_share`, its 95 % interval `low` to `high`, and `length_weight`, the log-odds that a much longer reply
        gains. None where lengths are not known or differ by the same everywhere, and where all are wins or all losses.
    """
    if None in longer or len(set(longer)) < 2 or not 0 < sum(worth) < len(worth):
        return None
    found = _fitted(tuple(worth), tuple(prompts), tuple(longer))
    return dict(zip(("win_share", "low", "high", "length_weight"), found, strict=True))


@lru_cache(maxsize=256)  # a page asks for the same in several places
def _fitted(
    worth: tuple[float, ...], prompts: tuple[Hashable, ...], longer: tuple[int, ...]
) -> tuple[float, float, float, float]:
    longer_N, worth_N = np.array(longer, dtype=np.float64), np.array(worth)
    input_N = np.tanh(longer_N / longer_N.std(ddof=1))
    weight = min(independent(worth, prompts) / len(worth), 1.0)

    def penalised(even: float, slope: float) -> float:
        """The log-likelihood and half of the log-determinant of the information."""
        odds_N = even + slope * input_N
        fit = weight * (worth_N * odds_N - np.logaddexp(0, odds_N)).sum()
        bend_N = np.exp(-np.abs(odds_N)) / (1 + np.exp(-np.abs(odds_N))) ** 2
        whole = bend_N.sum()
        spread = (bend_N * (input_N - (bend_N * input_N).sum() / whole) ** 2).sum()
        return fit + (math.log(whole) + math.log(max(spread, 1e-300))) / 2

    def best_slope(even: float) -> tuple[float, float]:
        found = minimize_scalar(lambda slope: -penalised(even, slope), bounds=(-STEEPEST, STEEPEST))
        return -found.fun, found.x

    even = minimize_scalar(lambda even: -best_slope(even)[0], bounds=(-FARTHEST, FARTHEST)).x
    highest, slope = best_slope(even)

    def above(end: float) -> float:
        return best_slope(end)[0] - highest + Z95**2 / 2

    low, high = (end if above(end) > 0 else brentq(above, end, even, xtol=1e-6) for end in (-FARTHEST, FARTHEST))
    share, least, most = (1 / (1 + math.exp(-at)) for at in (even, low, high))
    return share, least, most, float(slope)
