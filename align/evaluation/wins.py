"""Who won out, and how surely: wins, ties and losses of one model against another, in all and by category.

Every judgment counts alone, as in figure 4 of the Qwen report: three annotators of a prompt are three judgments, with
no majority vote, and averages are over judgments, not over categories. Judgments on one prompt are not independent, so
the interval of the win share (wins and half of the ties, over judgments) is that of as many independent ones as they
are worth (`align.evaluation.shares.clustered_wilson`).

The length-controlled share asks how the second model would do if its replies were as long as the first one's (Dubois et
al. 2024, AlpacaEval 2): a logistic regression of the verdict, a tie as a half, on tanh of the difference of lengths in
characters over its standard deviation, read where that is 0. Theirs has a third term, each prompt's difficulty, which
comes from a pool of many models' verdicts and is not to be had for two; and it is held near a baseline gamed by length,
by an L1 penalty chosen in cross-validation: here the length's weight has a normal prior as wide as 10, so that it stays
finite where length alone tells the verdict, and is hardly moved elsewhere. Without torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.evaluation.shares import Z95, clustered_wilson

WORTH = {"first": 0.0, "tie": 0.5, "second": 1.0}  # of a verdict, to the second
PRIOR = 10.0  # standard deviation of the weight of length in log-odds, around 0
NEWTON_STEPS = 100


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """A reply of each of two models to the same prompt, and all that was said of the two.

    Attributes:
        prompt: which one; the judgments of all pairs with the same hang together.
        winners: one a judgment, "first", "second" or "tie", None where there is no verdict; empty where the judge has
            nothing on the pair. `reward.judges.protocol.Judgment.winner`.
        category: of the prompt, empty for none.
        longer: length of the second reply minus that of the first, in characters; None: not known.
    """

    prompt: Hashable
    winners: Sequence[str | None]
    category: str = ""
    longer: int | None = None


def win_rates(pairs: Sequence[ComparedPair], *, judged_by: str, first: str, second: str) -> dict[str, Any]:
    """What `second` (the later of two models, the one that is asked about) won, tied and lost against `first`.

    Args:
        pairs: of any number of prompts; several a prompt where replies are sampled.
        judged_by: the words that follow "judged by", of `reward.judges.protocol.Judge.described`.
        first, second: the models' names.

    Returns:
        `judged_by`, `first`, `second`, and of all pairs: `prompts` and `pairs` with a verdict, `judgments` (verdicts),
        `no_verdict` (judgments that came to none) and `unjudged` (pairs on which the judge has nothing), none of which
        counts in a share; `win`, `tie`, `loss` of `second` in judgments; `win_share` with its 95 % interval `low` to
        `high`, all None without a verdict; `length_controlled`, with `win_share`, `low`, `high` and `length_weight`
        (the log-odds that a much longer reply gains), None where it cannot be fitted: lengths unknown or differing by
        the same everywhere, nothing but wins or nothing but losses. `by_category` has these counts and shares for each
        category that has a name.
    """
    categories = sorted({pair.category for pair in pairs} - {""})
    by_category = {name: _figures([pair for pair in pairs if pair.category == name]) for name in categories}
    who = {"judged_by": judged_by, "first": first, "second": second}
    return {**who, **_figures(pairs), "by_category": by_category}


def _figures(pairs: Sequence[ComparedPair]) -> dict[str, Any]:
    said = [(pair, winner) for pair in pairs for winner in pair.winners if winner is not None]
    worth, prompts = [WORTH[winner] for _, winner in said], [pair.prompt for pair, _ in said]
    low, high = clustered_wilson(worth, prompts) if worth else (None, None)
    return {
        "prompts": len(set(prompts)),
        "pairs": sum(any(winner is not None for winner in pair.winners) for pair in pairs),
        "judgments": len(said),
        "no_verdict": sum(len(pair.winners) for pair in pairs) - len(said),
        "unjudged": sum(not pair.winners for pair in pairs),
        "win": worth.count(1.0),
        "tie": worth.count(0.5),
        "loss": worth.count(0.0),
        "win_share": sum(worth) / len(worth) if worth else None,
        "low": low,
        "high": high,
        "length_controlled": _length_controlled(worth, prompts, [pair.longer for pair, _ in said]),
    }


def _length_controlled(
    worth: Sequence[float], prompts: Sequence[Hashable], longer: Sequence[int | None]
) -> dict[str, float] | None:
    """The share at equal lengths; its interval is the intercept's by the sandwich estimator over prompts, and never
    narrower than of as many independent judgments: where length tells the verdict that estimator sees no spread."""
    if not 0 < sum(worth) < len(worth) or None in longer:
        return None
    longer_N = np.array(longer, dtype=np.float64)
    if len(set(prompts)) < 2 or not (spread := longer_N.std(ddof=1)):
        return None
    inputs_N2 = np.stack([np.ones_like(longer_N), np.tanh(longer_N / spread)], axis=1)
    worth_N, prior = np.array(worth), np.diag([0.0, PRIOR**-2])
    weights = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        share_N = 1 / (1 + np.exp(-inputs_N2 @ weights))
        slope = inputs_N2.T @ (worth_N - share_N) - prior @ weights
        bend = (inputs_N2.T * (share_N * (1 - share_N))) @ inputs_N2 + prior
        step = np.linalg.solve(bend, slope)
        weights = weights + step * min(1.0, 4.0 / np.abs(step).max(initial=1e-300))
        if np.abs(step).max() < 1e-12:
            break
    own: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for prompt, row in zip(prompts, inputs_N2 * (worth_N - share_N)[:, None], strict=True):
        own[prompt] += row
    between = sum(np.outer(row, row) for row in own.values()) * len(own) / (len(own) - 1)
    inverse = np.linalg.inv(bend)
    half = Z95 * math.sqrt(max((inverse @ between @ inverse)[0, 0], inverse[0, 0]))
    shares = (1 / (1 + math.exp(-at)) for at in (weights[0], weights[0] - half, weights[0] + half))
    return dict(zip(("win_share", "low", "high"), shares, strict=True)) | {"length_weight": float(weights[1])}
