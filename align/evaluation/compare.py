"""Figures from scored replies: means, and paired intervals clustered by prompt; who won is counted in `wins`.

Replies to one prompt are not independent, so intervals are those of the mean over *prompts* of each prompt's mean
(normal approximation, 1.96 standard errors).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Table = Sequence[Sequence[float]]  # one inner sequence a prompt: the scores of its replies


def mean(table: Table) -> float:
    """Mean over all replies."""
    values = [value for row in table for value in row]
    return sum(values) / len(values)


def paired_difference(before: Table, after: Table) -> dict[str, float]:
    """Mean of (after - before) a prompt with its 95 % interval: `difference`, `low`, `high`."""
    differences = [sum(b) / len(b) - sum(a) / len(a) for a, b in zip(before, after, strict=True)]
    n = len(differences)
    center = sum(differences) / n
    variance = sum((value - center) ** 2 for value in differences) / max(n - 1, 1)
    half = 1.96 * math.sqrt(variance / n)
    return {"difference": center, "low": center - half, "high": center + half}


def decided_share(counts: dict[str, int]) -> float | None:
    """Wins among the decided pairs; None when all are ties."""
    decided = counts["win"] + counts["loss"]
    return counts["win"] / decided if decided else None
