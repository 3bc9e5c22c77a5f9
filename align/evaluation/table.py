"""Figures of a reward model as words, as the report's page and `align evaluate-reward` show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_ROWS = 20
KINDS = {
    "all": "",
    "by_source": "source",
    "by_grade": "grade",
    "by_category": "category",
    "by_tag": "tag",
    "by_length_gap": "length gap",
}
HEADER = ("by", "part", "pairs", "accuracy", "95 % interval", "length alone")


@dataclass(frozen=True, slots=True)
class AccuracyRow:
    """A line of the table, as it is shown; `kind` is empty after the first part of its kind."""

    kind: str
    part: str
    pairs: str
    accuracy: str
    interval: str
    length: str


def percent(share: float) -> str:
    """0.125 -> "12.5 %"."""
    return f"{100 * share:.1f} %"


def accuracy_table(parts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[AccuracyRow]:
    """A line a part; of a kind with more than MAX_ROWS those with most pairs, in their own order, and one that says how
    many more there are.

    Args:
        parts: a key of KINDS -> name -> what `align.evaluation.accuracy.accuracy` tells; what is None stays empty.
    """
    rows = []
    for key, every in parts.items():
        largest = set(sorted(every, key=lambda name, every=every: -(every[name]["pairs"] or 0))[:MAX_ROWS])
        shown = {name: part for name, part in every.items() if name in largest}
        for index, (name, part) in enumerate(shown.items()):
            low, high, length = (part[figure] for figure in ("accuracy_low", "accuracy_high", "length_baseline"))
            rows.append(
                AccuracyRow(
                    "" if index else KINDS[key],
                    name,
                    "" if part["pairs"] is None else str(part["pairs"]),
                    percent(part["accuracy"]),
                    "" if low is None or high is None else f"{100 * low:.1f} to {percent(high)}",
                    "" if length is None else percent(length),
                )
            )
        if len(shown) < len(every):
            rows.append(AccuracyRow("", f"… and {len(every) - len(shown)} more, see summary.json", "", "", "", ""))
    return rows


def calibration_sentence(
    before: float, after: float | None, temperature: float | None, *, cross_fitted: bool = True
) -> str:
    """The expected calibration error before and, where it is known, after the temperature."""
    sentence = f"expected calibration error {percent(before)} with the scores as they are"
    if after is None or temperature is None:
        return f"{sentence}."
    how = "each half of the prompts judged at the temperature fitted on the other; on all pairs it is"
    if not cross_fitted:
        how = "judged on the pairs that the temperature was fitted on; it is"
    return f"{sentence}, {percent(after)} at a temperature ({how} {temperature:.3g})."
