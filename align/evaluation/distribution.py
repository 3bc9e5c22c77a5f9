"""How scores are distributed: figures and a histogram. Plain numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS, WIDTH = 20, 40


def distribution(scores: Sequence[float]) -> dict[str, Any]:
    """`count`, `mean`, `std` (population), `min`, `max`, `quantiles` (interpolated) by name and `histogram`: `BINS`
    times [from, to, count], the last bin with its upper end. Of nothing only the count."""
    if not scores:
        return {"count": 0}
    ranked = sorted(scores)
    low, high = ranked[0], ranked[-1]
    counts = [0] * (BINS if high > low else 1)
    for score in ranked:
        at = int((score / 2 - low / 2) / (high / 2 - low / 2) * BINS) if high > low else 0  # halves: no overflow
        counts[min(at, len(counts) - 1)] += 1
    edges = [low + (high / len(counts) - low / len(counts)) * at for at in range(len(counts))] + [high]
    return {
        "count": len(ranked),
        "mean": statistics.fmean(ranked),
        "std": statistics.pstdev(ranked),
        "min": low,
        "max": high,
        "quantiles": {f"{share:g}": _quantile(ranked, share) for share in QUANTILES},
        "histogram": [[edges[at], edges[at + 1], count] for at, count in enumerate(counts)],
    }


def _quantile(ranked: Sequence[float], share: float) -> float:
    at = share * (len(ranked) - 1)
    below, above = ranked[math.floor(at)], ranked[math.ceil(at)]
    return below + (above - below) * (at - math.floor(at))


def lines(figures: dict[str, Any]) -> list[str]:
    """The figures and the histogram as text, a bar a bin."""
    if not figures["count"]:
        return ["no reply has a score"]
    shown = {"mean": figures["mean"], "sd": figures["std"], "min": figures["min"]}
    shown |= {f"{float(name):.0%}": value for name, value in figures["quantiles"].items()} | {"max": figures["max"]}
    most = max(count for *_, count in figures["histogram"])
    bars = [
        f"{low:>10.4g} {'█' * round(WIDTH * count / most):<{WIDTH}} {count}" for low, _, count in figures["histogram"]
    ]
    return ["  ".join(f"{name} {value:.4g}" for name, value in shown.items()), *bars]
