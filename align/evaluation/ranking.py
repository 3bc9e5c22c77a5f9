"""Several models by what was judged between each two of them, and how far judges agree. By evalica.

Strengths are those of the Bradley-Terry model with ties as Davidson (1970) puts them, fitted by Newman's iteration
(2023); a tie counts for what the verdicts themselves say of ties. They do not exist where some models only ever lost to
the others. Elo ratings (K 4, 400 points for odds of ten) depend on the order of the judgments, which have none: the
rating is the median over shuffled orders, as Chatbot Arena reports it (Chiang et al. 2024); with few judgments it stays
near where it began. Both scales begin at 1000.

Intervals are bootstraps over prompts. evalica's own draws judgments, as if those on one prompt were independent, and
compares strengths whose common factor is arbitrary: so prompts are drawn here and evalica is given their weights.
Agreement is Krippendorff's alpha of verdicts in their order (loss, tie, win) with evalica's interval (Hayes's).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
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


def ranking(
    matches: Mapping[tuple[str, str], Sequence[ComparedPair]], *, resamples: int = 1000, seed: int = 0
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
    said = {prompt: counts for prompt, counts in said.items() if counts}
    kinds = sorted({kind for counts in said.values() for kind in counts})
    models = list(dict.fromkeys(name for pair in matches for name in pair if any(name in kind[:2] for kind in kinds)))
    if not models:
        return []
    counts_PK = np.array([[counts[kind] for kind in kinds] for counts in said.values()], dtype=np.float64)
    rng, prompts = np.random.default_rng(seed), len(counts_PK)
    drawn_RP = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    strengths_RM = np.array([_strengths(kinds, weights, models) for weights in drawn_RP @ counts_PK])
    elo_RM = np.array([_elo(kinds, counts_PK, drawn, models, rng) for drawn in drawn_RP])
    whole = _strengths(kinds, counts_PK.sum(axis=0), models)
    judgments = Counter[str]()
    for (first, second, _), number in zip(kinds, counts_PK.sum(axis=0), strict=True):
        judgments.update({first: int(number), second: int(number)})
    rows = [
        {"model": name, "judgments": judgments[name], "bradley_terry": _known(whole[at])}
        | _interval("bradley_terry", strengths_RM[:, at])
        | {"elo": float(np.median(elo_RM[:, at]))}
        | _interval("elo", elo_RM[:, at])
        for at, name in enumerate(models)
    ]
    return sorted(rows, key=lambda row: -(row["elo"] if row["bradley_terry"] is None else row["bradley_terry"]))


def _strengths(kinds: Sequence[tuple[str, str, str]], weights_K: np.ndarray, models: Sequence[str]) -> np.ndarray:
    """Log-strengths in points, 1000 in the mean; NaN where they do not exist."""
    beats_MM = np.zeros((len(models), len(models)))
    for (first, second, winner), weight in zip(kinds, weights_K, strict=True):
        a, b = models.index(first), models.index(second)
        beats_MM[a, b] += weight * (1 - WORTH[winner])
        beats_MM[b, a] += weight * WORTH[winner]
    parts, _ = connected_components(beats_MM > 0, connection="strong")
    if parts > 1:
        return np.full(len(models), np.nan)
    if all(winner == "tie" for (*_, winner), weight in zip(kinds, weights_K, strict=True) if weight):
        return np.full(len(models), START)
    fitted = evalica.newman(
        [first for first, *_ in kinds],
        [second for _, second, _ in kinds],
        [WINNERS[winner] for *_, winner in kinds],
        index=pd.Index(models),
        weights=weights_K.tolist(),
        tolerance=1e-10,
        limit=10_000,
    )
    logs = np.log(fitted.scores.reindex(models).to_numpy())
    return START + POINTS * (logs - logs.mean())


def _elo(
    kinds: Sequence[tuple[str, str, str]],
    counts_PK: np.ndarray,
    drawn_P: np.ndarray,
    models: Sequence[str],
    rng: np.random.Generator,
) -> np.ndarray:
    """Ratings after the judgments of the prompts drawn, in a shuffled order."""
    order = rng.permutation(np.repeat(np.arange(len(kinds)), (drawn_P @ counts_PK).astype(int)))
    rows = [kinds[at] for at in order]
    fitted = evalica.elo(
        [first for first, *_ in rows],
        [second for _, second, _ in rows],
        [WINNERS[winner] for *_, winner in rows],
        index=pd.Index(models),
        initial=START,
    )
    return fitted.scores.reindex(models).to_numpy()


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _interval(name: str, values_R: np.ndarray) -> dict[str, float | None]:
    known = values_R[~np.isnan(values_R)]
    enough = len(known) >= 0.95 * len(values_R)
    low, high = np.percentile(known, INTERVAL).tolist() if enough else (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def agreement(verdicts: Mapping[tuple[str, str], Mapping[Hashable, str]], *, seed: int = 0) -> dict[str, Any]:
    """How far those who judged the same pairs of replies agree.

    Args:
        verdicts: by judge and by who of several judged ("" for one that is one), the winner by what was judged;
            nothing where there is no verdict.
        seed: of the interval of alpha.

    Returns:
        `alpha` (1: as one, 0: as by chance) with its 95 % interval `low` to `high`, over everybody who judged, and
        `units`, how much was judged by two or more; None where nothing was, or where all verdicts are the same.
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


def _alpha(verdicts: Mapping[tuple[str, str], Mapping[Hashable, str]], seed: int) -> dict[str, Any]:
    times = Counter(unit for own in verdicts.values() for unit in own)
    units = [unit for unit, number in times.items() if number > 1]
    unknown = {"alpha": None, "low": None, "high": None, "units": len(units)}
    values = [[WORTH[own[unit]] if unit in own else np.nan for unit in units] for own in verdicts.values()]
    if len({value for row in values for value in row if value == value}) < 2:
        return unknown
    found = evalica.alpha_bootstrap(pd.DataFrame(values), "ordinal", n_resamples=5000, random_state=seed)
    return {"alpha": found.alpha, "low": found.low, "high": found.high, "units": len(units)}
