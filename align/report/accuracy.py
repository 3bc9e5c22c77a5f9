"""Accuracies of a reward stage by part, each beside what length alone would get on the same pairs.

Computed from `eval.jsonl`; without it, what the summary holds. Whether "longer wins" or "shorter wins" is the rule was
learnt from the training pairs, which are not here: it is the one that agrees with the summary's `length_baseline`.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.evaluation.shares import wilson
from align.report.headline import tagged
from align.report.run import Row, StageFiles, clean, number

MAX_PARTS = 8


@dataclass(frozen=True, slots=True)
class Bar:
    """A share of pairs with its 95 % interval; `kind` is `model`, `length` or `other`."""

    part: str
    kind: str
    share: float
    low: float | None = None
    high: float | None = None


def scored(stage: StageFiles) -> list[Row]:
    """The lines of `eval.jsonl` that have both scores."""
    keys = ("chosen_score", "rejected_score")
    return [row for row in stage.evals if all(number(row.get(key)) is not None for key in keys)]


def accuracy_bars(stage: StageFiles) -> list[Bar]:
    """All pairs first, then every tag, model above length; then the other yardsticks of the summary."""
    rows = scored(stage)
    return (_from_rows(rows, stage.summary) if rows else _from_summary(stage.summary)) + _others(stage.summary)


def _from_rows(rows: list[Row], summary: Row) -> list[Bar]:
    parts: dict[str, list[Row]] = {"all pairs": rows}
    for row in rows:
        tags = row.get("tags")
        for tag in dict.fromkeys(clean(tag, 40) for tag in tags) if isinstance(tags, list) else ():
            parts.setdefault(f"tagged {tag}", []).append(row)
    sign = _direction(rows, number(summary.get("length_baseline")))
    bars = []
    for part, own in list(parts.items())[: MAX_PARTS + 1]:
        right = sum(row["chosen_score"] > row["rejected_score"] for row in own)
        name = f"{part} ({len(own)})"
        bars.append(Bar(name, "model", right / len(own), *wilson(right, len(own))))
        lengths = [longer for row in own if (longer := _longer(row)) is not None]
        if lengths:
            hits = sum((1 + sign * longer) / 2 for longer in lengths)
            bars.append(Bar(name, "length", hits / len(lengths), *wilson(hits, len(lengths))))
    return bars


def _longer(row: Row) -> int | None:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return None
    return (len(chosen) > len(rejected)) - (len(chosen) < len(rejected))


def _direction(rows: list[Row], baseline: float | None) -> int:
    """1 when the longer reply was taken for the better one, else -1."""
    lengths = [longer for row in rows if (longer := _longer(row)) is not None]
    share = sum((1 + longer) / 2 for longer in lengths) / len(lengths) if lengths else 0.5
    if baseline is None:
        return 1 if share >= 0.5 else -1
    return 1 if abs(share - baseline) <= abs(1 - share - baseline) else -1


def _from_summary(summary: Row) -> list[Bar]:
    accuracy = number(summary.get("accuracy"))
    if accuracy is None:
        return []
    name = "all pairs"
    bars = [Bar(name, "model", accuracy, number(summary.get("accuracy_low")), number(summary.get("accuracy_high")))]
    baseline = number(summary.get("length_baseline"))
    if baseline is not None:
        bars.append(Bar(name, "length", baseline))
    for tag, part in list(tagged(summary).items())[:MAX_PARTS]:
        low, high = number(part.get("accuracy_low")), number(part.get("accuracy_high"))
        bars.append(Bar(f"tagged {clean(tag, 40)}", "model", part["accuracy"], low, high))
    return bars


def _others(summary: Row) -> list[Bar]:
    named = {
        "before this stage": "accuracy_before",
        "finetuned without PMP": "accuracy_without_pmp",
        "manners alone": "manners_baseline",
        "majority side": "majority_baseline",
    }
    pairs = number(summary.get("pairs"))
    bars = []
    for name, key in named.items():
        share = number(summary.get(key))
        if share is not None and 0 <= share <= 1:
            interval = wilson(share * pairs, int(pairs)) if pairs else (None, None)
            bars.append(Bar(name, "other", share, *interval))
    return bars


def reliability_rows(stage: StageFiles) -> list[tuple[float, float, int]]:
    """(stated, found, pairs) of the summary's `reliability`; rows that are not such are left out."""
    rows = stage.summary.get("reliability")
    found = []
    for row in rows if isinstance(rows, list) else ():
        figures = [number(row.get(key)) for key in ("stated", "found", "pairs")] if isinstance(row, dict) else [None]
        if None in figures or not (0 <= figures[0] <= 1 and 0 <= figures[1] <= 1 and figures[2] >= 1):
            continue
        found.append((figures[0], figures[1], int(figures[2])))
    return found
