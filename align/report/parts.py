"""The table of a reward stage's accuracy by part, from its summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from align.report.headline import percent
from align.report.run import Row, Run, clean, number

KINDS = (
    ("by_source", "source"),
    ("by_grade", "grade"),
    ("by_category", "category"),
    ("by_tag", "tag"),
    ("by_length_gap", "length of the chosen reply"),
)
MOST = 12


@dataclass(frozen=True, slots=True)
class PartRow:
    """One line: what kind of part (empty after the first of a kind), its name, and figures as text."""

    kind: str
    name: str
    pairs: str
    accuracy: str
    interval: str
    longer: str


def part_rows(run: Run, stage: str) -> list[PartRow]:
    """All pairs, then every part; of a kind with more than `MOST` parts those with the most pairs."""
    summary = run.stages[stage].summary
    whole = _row("", "all pairs", summary)
    rows = [] if whole is None else [whole]
    for key, kind in KINDS:
        parts = summary.get(key)
        named = [(clean(name, 60), part) for name, part in parts.items()] if isinstance(parts, dict) else []
        largest = sorted((part for part in named if _pairs(part[1])), key=lambda part: -_pairs(part[1]))[:MOST]
        found = [row for part in named if part in largest and (row := _row("", *part)) is not None]
        rows += [PartRow(kind if at == 0 else "", *_cells(row)) for at, row in enumerate(found)]
    return rows


def calibration(run: Run, stage: str) -> str:
    """What the scores are worth as probabilities, a sentence; "" where nothing was measured."""
    keys = ("calibration_error", "temperature", "calibration_error_at_temperature")
    error, temperature, after = (number(run.stages[stage].summary.get(key)) for key in keys)
    if error is None or temperature is None:
        return ""
    words = f"{stage}: expected calibration error {percent(error)}"
    if after is None:
        return f"{words}; best temperature {temperature:.2f}."
    return f"{words}; {percent(after)} at temperature {temperature:.2f}, cross-fitted over two halves of the prompts."


def _cells(row: PartRow) -> tuple[str, ...]:
    return row.name, row.pairs, row.accuracy, row.interval, row.longer


def _pairs(part: Any) -> float:
    return (number(part.get("pairs")) or 0.0) if isinstance(part, dict) else 0.0


def _row(kind: str, name: str, part: Row) -> PartRow | None:
    share, pairs = number(part.get("accuracy")), number(part.get("pairs"))
    if share is None or pairs is None:
        return None
    low, high, longer = (number(part.get(key)) for key in ("accuracy_low", "accuracy_high", "longer"))
    interval = "" if low is None or high is None else f"{percent(low)} to {percent(high)}"
    return PartRow(kind, name, f"{pairs:.0f}", percent(share), interval, "" if longer is None else percent(longer))
