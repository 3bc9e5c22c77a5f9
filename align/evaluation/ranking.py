"""Several models by what was judged between each two of them, and how far judges agree. By evalica.

Strengths are those of the Bradley-Terry model with ties as Davidson (1970) puts them, fitted by Newman's iteration
(2023); a tie counts for what the verdicts themselves say of ties. They do not exist where some models only ever lost to
the others. Elo ratings (K 4, 400 points for odds of ten) depend on the order of the judgments, which have none: the
rating is the median over shuffled orders, as Chatbot Arena reports it (Chiang et al. 2024); with few judgments it stays
near where it began. Both scales begin at 1000.

Intervals are bootstraps over prompts. evalica's own draws judgments, as if those on one prompt were independent, and
compares strengths whose common factor is arbitrary: so prompts are drawn here and evalica is given their weights.
Agreement is Krippendorff's alpha of verdicts in their order (loss, tie, win).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import evalica
import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

from align.evaluation.wins import WORTH, ComparedPair

POINTS = 400 / math.log(10)  # of Elo's scale for a unit of log-strength
START = 1000.0
WINNERS = {"first": evalica.Winner.X, "second": evalica.Winner.Y, "tie": evalica.Winner.Draw}
INTERVAL = (2.5, 97.5)
ORDER = ("first", "tie", "second")  # of verdicts
RESAMPLES = 2000  # of prompts, for alpha
Unit = tuple[Hashable, ...]  # what was judged: the prompt, and which replies to it


def ranking(
    matches: Mapping[tuple[str, str], Sequence[ComparedPair]], *, resamples: int = 500, seed: int = 0
) -> list[dict[str, Any]]:
    """The models that have a verdict, the strongest first.

    Args:
        matches: what was judged between a first and a second model, by their names.
        resamples: draws of as many prompts as there are.
        seed: of the prompts that are drawn.

    Returns:
        A row a model: `model`, `judgments`, `bradley_terry` (in points of Elo's scale, 1000 in the mean over models)
        and `elo`, each with its 95 % interval (`…_low`, `…_high`). None for strengths that do not exist, and for an
        interval where they do not in more than 5 % of the draws.
    """
    said: dict[Hashable, Counter[tuple[str, str, str]]] = defaultdict(Counter)
    for (first, second), pairs in matches.items():
        for pair in pairs:
            said[pair.prompt].update((first, second, winner) for winner in pair.winners if winner is not None)
    named = sorted({one for counts in said.values() for one in counts})
    models = [name for name in dict.fromkeys(chain(*matches)) if any(name in one[:2] for one in named)]
    if not models:
        return []
    counts_PK = np.array([[counts[one] for one in named] for counts in said.values() if counts], dtype=np.float64)
    kinds = _Kinds(
        [models.index(first) for first, *_ in named],
        [models.index(second) for _, second, _ in named],
        [winner for *_, winner in named],
        pd.RangeIndex(len(models)),
    )
    rng, prompts = np.random.default_rng(seed), len(counts_PK)
    drawn_RK = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples) @ counts_PK
    strengths_RM = np.array([kinds.strengths(weights_K) for weights_K in drawn_RK])
    elo_RM = np.array([kinds.elo(numbers_K.astype(int), rng) for numbers_K in drawn_RK])
    whole_K = counts_PK.sum(axis=0)
    whole_M = kinds.strengths(whole_K)
    rows = [
        {"model": name, "judgments": kinds.judgments(whole_K, at), "bradley_terry": _known(whole_M[at])}
        | _interval("bradley_terry", strengths_RM[:, at])
        | {"elo": float(np.median(elo_RM[:, at]))}
        | _interval("elo", elo_RM[:, at])
        for at, name in enumerate(models)
    ]
    return sorted(rows, key=lambda row: -(row["elo"] if row["bradley_terry"] is None else row["bradley_terry"]))


@dataclass(frozen=True, slots=True)
class _Kinds:
    """The kinds of judgments there are, K of them: the numbers of the first and of the second model, and who won."""

    firsts: list[int]
    seconds: list[int]
    winners: list[str]
    models: pd.RangeIndex

    def judgments(self, numbers_K: np.ndarray, model: int) -> int:
        """How many judgments of these numbers a model is in."""
        own_K = (np.array(self.firsts) == model) | (np.array(self.seconds) == model)
        return int(numbers_K[own_K].sum())

    def strengths(self, weights_K: np.ndarray) -> np.ndarray:
        """Log-strengths in points, 1000 in the mean; NaN where they do not exist."""
        worth_K = np.array([WORTH[winner] for winner in self.winners])
        beats_MM = np.zeros((len(self.models), len(self.models)))
        np.add.at(beats_MM, (self.firsts, self.seconds), weights_K * (1 - worth_K))
        np.add.at(beats_MM, (self.seconds, self.firsts), weights_K * worth_K)
        if connected_components(beats_MM > 0, connection="strong")[0] > 1:
            return np.full(len(self.models), np.nan)
        if (worth_K[weights_K > 0] == WORTH["tie"]).all():
            return np.full(len(self.models), START)
        winners = [WINNERS[winner] for winner in self.winners]
        fitted = evalica.newman(
            *(self.firsts, self.seconds, winners),
            index=self.models,
            weights=weights_K.tolist(),
            tolerance=1e-10,
            limit=10_000,
        )
        logs_M = np.log(fitted.scores.sort_index().to_numpy())
        return START + POINTS * (logs_M - logs_M.mean())

    def elo(self, numbers_K: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Ratings after so many judgments of each kind, in a shuffled order."""
        order = rng.permutation(np.repeat(np.arange(len(numbers_K)), numbers_K))
        firsts, seconds = (np.array(side)[order].tolist() for side in (self.firsts, self.seconds))
        winners = [WINNERS[self.winners[kind]] for kind in order]
        fitted = evalica.elo(firsts, seconds, winners, index=self.models, initial=START)
        return fitted.scores.sort_index().to_numpy()


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _interval(name: str, values_R: np.ndarray) -> dict[str, float | None]:
    low, high = _percentiles(values_R)
    return {f"{name}_low": low, f"{name}_high": high}


def _percentiles(values_R: np.ndarray) -> tuple[float | None, float | None]:
    known = values_R[~np.isnan(values_R)]
    enough = len(known) >= 0.95 * len(values_R)
    low, high = np.percentile(known, INTERVAL).tolist() if enough else (None, None)
    return low, high


def agreement(verdicts: Mapping[tuple[str, str], Mapping[Unit, str]], *, seed: int = 0) -> dict[str, Any]:
    """How far those who judged the same pairs of replies agree.

    Args:
        verdicts: by judge and by who of several judged ("" for one that is one), the winner by what was judged;
            nothing where there is no verdict.
        seed: of the interval of alpha.

    Returns:
        `alpha` (1: as one, 0: as by chance) with its 95 % interval `low` to `high` over prompts, over everybody who
        judged, and `units`, how much was judged by two or more; None where nothing was, or where all verdicts are the
        same, and for the interval of one prompt.
        `within` has the same for each judge that is several people, and `between` for each two judges `equal`, how
        many verdicts of one are those of the other on the same, as a share of their `number`.
    """
    judges = list(dict.fromkeys(judge for judge, _ in verdicts))
    of_judge = {name: {who: own for who, own in verdicts.items() if who[0] == name} for name in judges}
    between = []
    for first, second in combinations(judges, 2):
        same = [
            mine[unit] == theirs[unit]
            for mine in of_judge[first].values()
            for theirs in of_judge[second].values()
            for unit in mine.keys() & theirs.keys()
        ]
        equal = sum(same) / len(same) if same else None
        between.append({"first": first, "second": second, "equal": equal, "number": len(same)})
    within = {name: _alpha(own, seed) for name, own in of_judge.items() if len(own) > 1}
    return {**_alpha(verdicts, seed), "within": within, "between": between}


def _alpha(verdicts: Mapping[tuple[str, str], Mapping[Unit, str]], seed: int) -> dict[str, Any]:
    values: dict[Unit, list[int]] = defaultdict(list)
    for own in verdicts.values():
        for unit, winner in own.items():
            values[unit].append(ORDER.index(winner))
    several = {unit: said for unit, said in values.items() if len(said) > 1}
    unknown = {"alpha": None, "low": None, "high": None, "units": len(several)}
    if len({value for said in several.values() for value in said}) < 2:
        return unknown
    table = [[ORDER.index(own[unit]) if unit in own else np.nan for unit in several] for own in verdicts.values()]
    pairs: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros((len(ORDER), len(ORDER))))
    for (prompt, *_), said in several.items():
        times_V = np.bincount(said, minlength=len(ORDER))
        pairs[prompt] += (np.outer(times_V, times_V) - np.diag(times_V)) / (len(said) - 1)
    prompts = len(pairs)
    drawn_RP = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)
    drawn_RVV = np.tensordot(drawn_RP, np.array(list(pairs.values())), axes=1)
    low, high = _percentiles(_ordinal_alpha(drawn_RVV)) if prompts > 1 else (None, None)
    return unknown | {"alpha": evalica.alpha(pd.DataFrame(table), "ordinal").alpha, "low": low, "high": high}


def _ordinal_alpha(pairs_RVV: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha of how often two values were given to one unit; NaN where all are the same value."""
    times_RV = pairs_RVV.sum(axis=-1)
    upto_RV = np.cumsum(times_RV, axis=-1) - times_RV / 2
    distance_RVV = (upto_RV[:, :, None] - upto_RV[:, None, :]) ** 2
    observed_R = (pairs_RVV * distance_RVV).sum(axis=(1, 2))
    expected_R = (times_RV[:, :, None] * times_RV[:, None, :] * distance_RVV).sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        return 1 - (times_RV.sum(axis=-1) - 1) * observed_R / expected_R
