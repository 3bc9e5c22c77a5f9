"""Accuracies of a reward stage by part, each beside what length alone would get on the same pairs.

Computed from `eval.jsonl`; without it, what the summary holds. Whether "longer wins" or "shorter wins" is the rule was
learnt from the training pairs, which are not here: the summary says it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from align.evaluation import table
from align.evaluation.accuracy import JudgedPair, Part, accuracy, parts, won_share
from align.evaluation.shares import wilson
from align.runs.run_files import Row, StageFiles, clean, number
from data_formats.splitting import text_key

MAX_PARTS = 8
KINDS = ("by_source", "by_grade", "by_category", "by_tag", "by_length_gap")
FIGURES = ("accuracy", "accuracy_low", "accuracy_high", "length_baseline")


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


def parts_of(stage: StageFiles) -> dict[str, dict[str, Part]]:
    """`all`, `by_source`, `by_grade`, ... -> name -> `accuracy`, `accuracy_low`, `accuracy_high`, `pairs` and
    `length_baseline`, each None where it is not known; a part has an `accuracy` or is not there."""
    rows = scored(stage)
    if not rows:
        return _from_summary(stage.summary)
    judged, longer_wins = [_judged(row) for row in rows], _longer_wins(rows, stage.summary)
    return {"all": {"all pairs": accuracy(judged, longer_wins)}} | parts(judged, longer_wins)


def accuracy_bars(stage: StageFiles) -> list[Bar]:
    """All pairs first, then every tag, model above length; then the other yardsticks of the summary."""
    found = parts_of(stage)
    tagged = {f"tagged {tag}": part for tag, part in list(found["by_tag"].items())[:MAX_PARTS]}
    bars = []
    for name, part in (found["all"] | tagged).items():
        label = name if part["pairs"] is None else f"{name} ({part['pairs']})"
        bars.append(Bar(label, "model", part["accuracy"], part["accuracy_low"], part["accuracy_high"]))
        if (length := part["length_baseline"]) is not None:
            pairs = part["pairs"]
            bars.append(Bar(label, "length", length, *(wilson(length * pairs, pairs) if pairs else (None, None))))
    return bars + _others(stage.summary)


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


def _judged(row: Row) -> JudgedPair:
    tags = row.get("tags")
    return JudgedPair(
        float(row["chosen_score"]) - float(row["rejected_score"]),
        _longer(row),
        clean(row.get("category"), 60),
        clean(row.get("source"), 60),
        number(row.get("grade")),
        tuple(clean(tag, 40) for tag in tags) if isinstance(tags, list) else (),
        _prompt(row.get("prompt")),
    )


def _prompt(prompt: Any) -> str:
    turns = [turn for turn in prompt if isinstance(turn, dict)] if isinstance(prompt, list) else []
    asked = next((turn.get("content") for turn in turns if turn.get("role") == "user"), "")
    return text_key(asked) if isinstance(asked, str) else ""


def _longer(row: Row) -> int | None:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    return len(chosen) - len(rejected) if isinstance(chosen, str) and isinstance(rejected, str) else None


def _longer_wins(rows: list[Row], summary: Row) -> bool:
    """What the summary says; where it says nothing (the stage goes on), what the rows so far would."""
    rule = summary.get("length_rule")
    if isinstance(rule, dict) and isinstance(rule.get("longer_wins"), bool):
        return rule["longer_wins"]
    share = won_share([longer for row in rows if (longer := _longer(row)) is not None])
    return share is None or share >= 0.5


def _from_summary(summary: Row) -> dict[str, dict[str, Part]]:
    found: dict[str, dict[str, Part]] = {"all": _checked({"all pairs": summary})}
    return found | {key: _checked(summary.get(key)) for key in KINDS}


def _checked(parts: Any) -> dict[str, Part]:
    """The parts that have an accuracy, with the figures that are what they should be."""
    found = {}
    for name, part in parts.items() if isinstance(parts, dict) else ():
        figures = {key: _share(part.get(key)) if isinstance(part, dict) else None for key in FIGURES}
        if figures["accuracy"] is not None:
            pairs = number(part.get("pairs"))
            found[clean(name, 60)] = figures | {"pairs": int(pairs) if pairs is not None and pairs >= 0 else None}
    return found


def _share(value: Any) -> float | None:
    share = number(value)
    return share if share is not None and 0 <= share <= 1 else None


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
        share = _share(summary.get(key))
        if share is not None:
            interval = wilson(share * pairs, int(pairs)) if pairs else (None, None)
            bars.append(Bar(name, "other", share, *interval))
    return bars
