"""What a reward stage is worth on held-out pairs, in words: the table of accuracies, and how far its scores can be read
as probabilities."""

from __future__ import annotations

from dataclasses import dataclass

from align.report.accuracy import parts_of
from align.report.headline import percent
from align.report.run import StageFiles, number

MAX_ROWS = 20
KINDS = {
    "all": "",
    "by_source": "source",
    "by_grade": "grade",
    "by_category": "category",
    "by_tag": "tag",
    "by_length_gap": "chosen reply, characters",
}


@dataclass(frozen=True, slots=True)
class AccuracyRow:
    """A line of the table, as it is shown; `kind` is empty after the first part of its kind."""

    kind: str
    part: str
    pairs: str
    accuracy: str
    interval: str
    length: str


def accuracy_table(stage: StageFiles) -> list[AccuracyRow]:
    """All pairs, then every part; empty without an accuracy. Of a kind with more than MAX_ROWS parts those with most
    pairs are shown, in their own order, and a last row says how many more there are."""
    rows = []
    for key, parts in parts_of(stage).items():
        largest = sorted(parts, key=lambda name, parts=parts: -(parts[name]["pairs"] or 0))[:MAX_ROWS]
        shown = {name: part for name, part in parts.items() if name in set(largest)}
        for name, part in shown.items():
            ends = [part["accuracy_low"], part["accuracy_high"]]
            rows.append(
                AccuracyRow(
                    KINDS[key] if name == next(iter(shown)) else "",
                    name,
                    "" if part["pairs"] is None else str(part["pairs"]),
                    percent(part["accuracy"]),
                    "" if None in ends else f"{percent(ends[0])} to {percent(ends[1])}",
                    "" if part["length_baseline"] is None else percent(part["length_baseline"]),
                )
            )
        if len(shown) < len(parts):
            rows.append(AccuracyRow("", f"… and {len(parts) - len(shown)} more, see summary.json", "", "", "", ""))
    return rows


def calibration_sentence(stage: StageFiles) -> str:
    """Expected calibration error before and after the temperature, "" where the summary has none."""
    before = number(stage.summary.get("calibration_error"))
    after, temperature = (number(stage.summary.get(key)) for key in ("calibration_error_at_temperature", "temperature"))
    if before is None:
        return ""
    sentence = f"expected calibration error {percent(before)} with the scores as they are"
    if after is None or temperature is None:
        return f"{sentence}."
    how = "each half of the prompts judged at the temperature fitted on the other; on all pairs it is"
    if not reliability_rows(stage, "reliability_at_temperature"):  # an older version's summary
        how = "judged on the pairs that the temperature was fitted on; it is"
    return f"{sentence}, {percent(after)} at a temperature ({how} {temperature:.3g})."


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
