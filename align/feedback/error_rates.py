"""How often each annotator is wrong, from what several said of the same pairs and no true answer. In numpy.

Dawid and Skene's model (1979) with two classes: each pair has a better reply, which nobody knows; an annotator finds it
with one probability where it was shown earlier and with another where it was shown later, whatever the others say. The
maximum of the likelihood by EM. Which reply of a pair comes first is drawn at random when items are collected, so that
the classes' shares are not estimated: both are one half. Two annotators who are wrong equally often agree on a share of
(1 - e)² + e² of the pairs; that is what comes out for two, whose rates agreement alone cannot tell apart. Of two who
share pairs with nobody else and agree on no more than half of them nothing is said: no such e explains them, and which
of them is mostly wrong is anybody's guess.

What all annotators have in common (all prefer the longer reply) looks like the truth and is no error here; that each
prefers the reply shown first is told apart, also where all were shown the same order.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from align.evaluation.shares import wilson

STEPS, TOLERANCE, START = 2000, 1e-6, 0.75
NEVER = 1e-3  # pairs that stand for what never happened, so that no probability is 0
FEWEST = 20  # pairs that an annotator must share with others
STATES = 4  # of a choice: 2 * (the first reply was shown earlier) + (the first reply was chosen)


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """Of one annotator.

    Attributes:
        rate: the share of choices for the worse reply, half of the pairs having the better one earlier; with its 95 %
            interval `low` to `high`, a bootstrap over items that is never narrower than Wilson's of `pairs` pairs.
        lean: by how much the share of choices for the earlier reply exceeds one half.
        pairs: how many were chosen from by this annotator and another.
    """

    rate: float
    low: float
    high: float
    lean: float
    pairs: int


def error_rates(
    choices: Mapping[str, Mapping[tuple[Hashable, ...], tuple[bool, bool]]], *, resamples: int = 100, seed: int = 0
) -> dict[str, ErrorRate]:
    """The rates of those annotators who share FEWEST pairs or more with others.

    Args:
        choices: by annotator and pair, of which the first part tells the item: whether the pair's first reply was shown
            earlier to this annotator, and whether it was chosen. No entry where neither was.
        resamples: draws of as many items as there are.
    """
    shared: dict[tuple[Hashable, ...], list[str]] = {}
    for who, own in choices.items():
        for pair in own:
            shared.setdefault(pair, []).append(who)
    pairs = [pair for pair, who in shared.items() if len(who) > 1]
    names = [who for who, own in choices.items() if sum(pair in own for pair in pairs) >= FEWEST]
    names = _without_opposites(choices, names)
    pairs = [pair for pair in pairs if sum(pair in choices[who] for who in names) > 1]
    if not pairs:
        return {}
    states_PK = np.full((len(pairs), len(names)), -1)
    for column, who in enumerate(names):
        for row, pair in enumerate(pairs):
            if pair in choices[who]:
                earlier, chosen = choices[who][pair]
                states_PK[row, column] = 2 * earlier + chosen
    kinds_UK, kind_P = np.unique(states_PK, axis=0, return_inverse=True)
    said_UKS = (kinds_UK[:, :, None] == np.arange(STATES)).astype(float)
    items = {item: at for at, item in enumerate(dict.fromkeys(pair[0] for pair in pairs))}
    item_P = np.array([items[pair[0]] for pair in pairs])
    drawn_RI = np.random.default_rng(seed).multinomial(len(items), np.full(len(items), 1 / len(items)), size=resamples)
    kind_P = kind_P.reshape(-1)

    def fitted(weights_P: np.ndarray, start_K2: np.ndarray) -> np.ndarray:
        return _right(said_UKS, np.bincount(kind_P, weights_P, len(kinds_UK)), start_K2)

    right_K2 = fitted(np.ones(len(pairs)), np.full((len(names), 2), START))
    right_RK2 = np.stack([fitted(weights_I[item_P].astype(float), right_K2) for weights_I in drawn_RI])
    rate_K, numbers_K = 1 - right_K2.mean(axis=1), (states_PK >= 0).sum(axis=0)
    low_K, high_K = np.percentile(1 - right_RK2.mean(axis=2), (2.5, 97.5), axis=0)
    found = {}
    for at, who in enumerate(names):
        narrow = wilson(rate_K[at] * numbers_K[at], numbers_K[at])
        low, high = min(narrow[0], low_K[at]), max(narrow[1], high_K[at])
        lean = float(right_K2[at, 1] - right_K2[at, 0]) / 2
        found[who] = ErrorRate(float(rate_K[at]), float(low), float(high), lean, int(numbers_K[at]))
    return found


def _without_opposites(
    choices: Mapping[str, Mapping[tuple[Hashable, ...], tuple[bool, bool]]], names: Sequence[str]
) -> list[str]:
    """The annotators without each two who share pairs with nobody else and agree on no more than half of them."""
    with_whom = {
        who: [one for one in names if one != who and choices[one].keys() & choices[who].keys()] for who in names
    }
    left = []
    for who in names:
        others = with_whom[who]
        if len(others) == 1 and with_whom[others[0]] == [who]:
            mine, theirs = choices[who], choices[others[0]]
            both = mine.keys() & theirs.keys()
            if 2 * sum(mine[pair][1] == theirs[pair][1] for pair in both) <= len(both):
                continue
        left.append(who)
    return left


def _right(said_UKS: np.ndarray, weights_U: np.ndarray, start_K2: np.ndarray) -> np.ndarray:
    """The probabilities of the right choice where the better reply was shown later and earlier, by EM.

    Args:
        said_UKS: of each kind of pair 1 for the state of each annotator's choice, 0 for the others.
        weights_U: how many pairs of each kind there are.
        start_K2: where to begin: above one half, since the same choices explain themselves with everybody wrong.
    """
    right_K2 = start_K2
    for _ in range(STEPS):
        wrong_K2 = 1 - right_K2
        # By state, where the first reply is the better one, and where the second is.
        if_first_KS = np.stack([wrong_K2[:, 0], right_K2[:, 0], wrong_K2[:, 1], right_K2[:, 1]], axis=1)
        if_second_KS = np.stack([right_K2[:, 1], wrong_K2[:, 1], right_K2[:, 0], wrong_K2[:, 0]], axis=1)
        odds_U = np.tensordot(said_UKS, np.log(if_first_KS) - np.log(if_second_KS), axes=2)
        first_U = weights_U / (1 + np.exp(-np.clip(odds_U, -500, 500)))  # many who agree are very sure
        first_KS = np.tensordot(first_U, said_UKS, axes=1)
        second_KS = np.tensordot(weights_U - first_U, said_UKS, axes=1)
        later_K = first_KS[:, :2].sum(axis=1) + second_KS[:, 2:].sum(axis=1)  # the better reply was shown later
        earlier_K = first_KS[:, 2:].sum(axis=1) + second_KS[:, :2].sum(axis=1)
        hits_K2 = np.stack([first_KS[:, 1] + second_KS[:, 2], first_KS[:, 3] + second_KS[:, 0]], axis=1)
        all_K2 = np.stack([later_K, earlier_K], axis=1)
        after_K2 = (hits_K2 + NEVER) / (all_K2 + 2 * NEVER)
        moved, right_K2 = np.abs(after_K2 - right_K2).max(), after_K2
        if moved < TOLERANCE:
            break
    return right_K2
