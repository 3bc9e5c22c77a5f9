"""What a reward stage is worth on held-out pairs, as the page tells it: the table of accuracies, and how far its scores
can be read as probabilities."""

from __future__ import annotations

from align.evaluation import table
from align.report.accuracy import parts_of
from align.report.run import StageFiles, number


def accuracy_table(stage: StageFiles) -> list[table.AccuracyRow]:
    """All pairs, then every part; empty without an accuracy."""
    return table.accuracy_table(parts_of(stage))


def calibration_sentence(stage: StageFiles) -> str:
    """Expected calibration error before and after the temperature, "" where the summary has none."""
    before = number(stage.summary.get("calibration_error"))
    after, temperature = (number(stage.summary.get(key)) for key in ("calibration_error_at_temperature", "temperature"))
    if before is None:
        return ""
    cross_fitted = bool(reliability_rows(stage, "reliability_at_temperature"))  # an older version's summary has none
    return table.calibration_sentence(before, after, temperature, cross_fitted=cross_fitted)


def reliability_rows(stage: StageFiles, key: str = "reliability") -> list[tuple[float, float, int]]:
    """(stated, found, pairs) of the summary's `key`; rows that are not such are left out."""
    rows = stage.summary.get(key)
    found = []
    for row in rows if isinstance(rows, list) else ():
        figures = [number(row.get(key)) for key in ("stated", "found", "pairs")] if isinstance(row, dict) else [None]
        if None in figures or not (0 <= figures[0] <= 1 and 0 <= figures[1] <= 1 and figures[2] >= 1):
            continue
        found.append((figures[0], figures[1], int(figures[2])))
    return found
