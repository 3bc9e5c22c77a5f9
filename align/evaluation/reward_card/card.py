"""Cases and scores -> the card: every figure of every benchmark, as JSON holds it.

Beside a benchmark's own figures stand what length alone gets by the same formula (the longer reply always, the shorter
always; equal lengths are no win for either), the accuracy where the right reply is the longer and where it is the
shorter, and the calibration: how far sigmoid(difference of two scores) is from the share that is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.evaluation.calibration import calibration_error, reliability
from align.evaluation.reward_card.benchmarks import BY_KEY, Benchmark
from align.evaluation.reward_card.cases import Case, Estimate, Outcome, Scores
from align.evaluation.reward_card.finding import Found
from align.evaluation.reward_card.formulas import PRIOR_WEIGHT, STYLES, headline, share

PUBLISHED = Path(__file__).with_name("published.json")
LENGTHS = ("the right reply longer", "the right reply shorter", "equally long")


def make_card(found: Found, scores: Mapping[str, Scores], *, model: str, limit: int | None = None) -> dict[str, Any]:
    """The card.

    Args:
        scores: of each benchmark's cases, by its key.
        model: what was asked, for the reader.
        limit: rows of each part that were read, where they were not all.

    Returns:
        `model`, `limit`; `benchmarks`: by key, see `figures`; `missing`: the names of those that were not found;
        `passed_over`: why, by file.
    """
    made = {
        key: figures(one, found.cases[key], scores[key]) | {"files": _files(found, key)}
        for key, one in BY_KEY.items()
        if key in found.cases
    }
    if {"rewardbench", "prior_sets"} <= made.keys():
        made["rewardbench"]["with_prior_sets"] = _with_prior_sets(made)
    return {
        "model": model,
        "limit": limit,
        "benchmarks": made,
        "missing": [one.name for key, one in BY_KEY.items() if key not in made],
        "passed_over": found.passed_over,
    }


def figures(benchmark: Benchmark, cases: Sequence[Case], scores: Scores) -> dict[str, Any]:
    """Every figure of a benchmark.

    Returns:
        `name`, `counted` (the formula in words), `source`; `rows`, and `published_rows` of the whole benchmark;
        `overall` and `parts` by heading and name: `score` with `low` and `high`, its 95 % interval, `n`, and what
        length alone gets, `longer` and `shorter`; `lacking`: parts that the published figure has and the files do not;
        `terms` of a composed figure; `matrix` of styles; `by_length`: accuracy by which reply is longer;
        `calibration_error` and `reliability` over `pairs` pairs; `published`: others' figures.
    """
    lengths = [[len(reply.reply) for reply in case.replies] for case in cases]
    own = benchmark.formula(cases, scores)
    longer = benchmark.formula(cases, lengths)
    shorter = benchmark.formula(cases, [[-length for length in of] for of in lengths])
    counted = headline(cases, scores)
    differences = [one[right] - one[wrong] for case, one in zip(*counted, strict=True) for right, wrong in case.pairs]
    rows = reliability(differences)
    return {
        "name": benchmark.name,
        "counted": benchmark.counted,
        "source": benchmark.source,
        "rows": len(cases),
        "published_rows": benchmark.published_rows,
        "overall": None if own.overall is None else _told(own.overall, longer.overall, shorter.overall),
        "parts": {
            heading: {
                name: _told(figure, longer.parts[heading][name], shorter.parts[heading][name])
                for name, figure in of.items()
            }
            for heading, of in own.parts.items()
            if of
        },
        "lacking": list(own.lacking),
        "terms": own.terms,
        **({} if own.matrix is None else {"matrix": _matrix(own), "styles": list(STYLES)}),
        "by_length": by_length(*counted),
        "pairs": len(differences),
        "calibration_error": calibration_error(rows) if differences else None,
        "reliability": rows,
        "published": [one for one in published() if one["benchmark"] == benchmark.key],
    }


def published() -> list[dict[str, Any]]:
    """Others' figures in per cent, each with its source."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def by_length(cases: Sequence[Case], scores: Scores) -> dict[str, dict[str, Any]]:
    """Accuracy over the pairs whose right reply is the longer, and over those where it is the shorter."""
    groups: dict[str, list[tuple[bool, Any]]] = {name: [] for name in LENGTHS}
    for case, own in zip(cases, scores, strict=True):
        for right, wrong in case.pairs:
            gap = len(case.replies[right].reply) - len(case.replies[wrong].reply)
            groups[LENGTHS[0 if gap > 0 else 1 if gap < 0 else 2]].append((own[right] > own[wrong], case.prompt))
    return {name: _figure(share(*zip(*pairs, strict=True))) for name, pairs in groups.items() if pairs}


def _told(figure: Estimate, longer: Estimate, shorter: Estimate) -> dict[str, Any]:
    return _figure(figure) | {"longer": longer.value, "shorter": shorter.value}


def _figure(figure: Estimate) -> dict[str, Any]:
    return {"score": figure.value, "low": figure.low, "high": figure.high, "n": figure.n}


def _matrix(result: Outcome) -> list[list[float]]:
    return [list(row) for row in result.matrix or ()]


def _files(found: Found, key: str) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "rows": one.rows, "left_out": dict(one.left_out)}
        for one in found.files
        if one.benchmark == key
    ]


def _with_prior_sets(made: Mapping[str, Any]) -> float:
    """RewardBench 1's score with the prior sets at half weight, as its first leaderboard had it."""
    sections = [one["score"] for one in made["rewardbench"]["parts"]["section"].values()]
    prior = made["prior_sets"]["overall"]
    total, weight = sum(sections), float(len(sections))
    if prior is not None:
        total, weight = total + PRIOR_WEIGHT * prior["score"], weight + PRIOR_WEIGHT
    return total / weight
