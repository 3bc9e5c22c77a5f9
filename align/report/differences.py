"""A figure of a stage with its 95 % interval, and by how much it differs between two runs.

Where both runs were measured on the same rows in the same order (`eval.jsonl`) the interval is that of paired
differences, rows of one prompt hanging together; else that of independent runs, from the interval of each.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from align.evaluation.shares import Z95
from align.recipe import STAGES
from align.report.accuracy import scored
from align.report.names import REWARD
from align.report.policy_evaluation import GREEDY, SAMPLED, compared
from align.runs.run_files import Row, Run, StageFiles, number

IN_ROWS = {"score_greedy": REWARD, "score": f"{REWARD}_sampled"}  # as `eval.jsonl` calls them


class Measured(NamedTuple):
    """One row behind a figure: what was asked, the prompt that hangs together with others, what came of it."""

    asked: str
    prompt: str
    value: float


@dataclass(frozen=True, slots=True)
class Result:
    """A figure of one run with the rows that it is the mean of, where they are known."""

    value: float
    interval: tuple[float, float] | None = None
    rows: tuple[Measured, ...] = ()


def result(run: Run, name: str, key: str) -> Result | None:
    """A figure of a finished stage with its interval, None where its summary has none."""
    stage = run.stages[name]
    if key.startswith("wins"):
        return _wins(run, stage, key.removeprefix("wins"))
    value = number(stage.summary.get(key))
    if value is None:
        return None
    rows = tuple(eval_rows(stage, name, IN_ROWS.get(key, key)))
    if rows and not math.isclose(math.fsum(row.value for row in rows) / len(rows), value, rel_tol=1e-6, abs_tol=1e-6):
        rows = ()  # they are not what the figure is the mean of
    bounds = [number(stage.summary.get(f"{key}_{end}")) for end in ("low", "high")]
    if None not in bounds:
        return Result(value, (bounds[0], bounds[1]), rows)
    return Result(value, _interval(rows), rows)


def _wins(run: Run, stage: StageFiles, suffix: str) -> Result | None:
    """Wins and half of the ties over all judgments, as the page of the run counts them; without its rows, as the
    summary does."""
    counts = [number(stage.summary.get(f"{outcome}{suffix}")) for outcome in ("win", "tie", "loss")]
    if None in counts or min(counts) < 0 or not sum(counts):
        return None
    comparison = compared(run, stage)
    tally = comparison and comparison.tables.get(SAMPLED if suffix else GREEDY, {}).get("all")
    if tally and (tally.win, tally.tie, tally.loss) == tuple(counts) and None not in (tally.low, tally.high):
        return Result(tally.share, (tally.low, tally.high))
    return Result((counts[0] + counts[1] / 2) / sum(counts))


def eval_rows(stage: StageFiles, name: str, key: str = "") -> Iterator[Measured]:
    """What a figure is the mean of, row by row of `eval.jsonl`; without a key what was asked alone."""
    if STAGES[name].figures == "reward":
        for row in scored(stage):
            prompt = json.dumps(row.get("prompt"), sort_keys=True)
            pair = json.dumps([row.get("prompt"), row.get("chosen"), row.get("rejected")], sort_keys=True)
            margin = row["chosen_score"] - row["rejected_score"]
            if key in ("", "accuracy"):
                yield Measured(pair, prompt, 0.5 if margin == 0 else float(margin > 0))
        return
    for row in stage.evals:
        prompt = json.dumps(row.get("prompt"), sort_keys=True)
        value = 0.0 if not key else _of_policy(row, name, key)
        if value is not None:
            yield Measured(prompt, prompt, value)


def _of_policy(row: Row, name: str, key: str) -> float | None:
    plain = key.removesuffix("_sampled")
    if plain == key:
        return number(row.get(f"{name}_{key}"))
    sampled = row.get("sampled")
    replies = sampled.get(name) if isinstance(sampled, dict) else None
    values = [number(one.get(plain)) for one in replies if isinstance(one, dict)] if isinstance(replies, list) else []
    return None if not values or None in values else math.fsum(values) / len(values)


def same_rows(stages: Sequence[StageFiles], name: str) -> bool:
    """Whether the runs that measured this stage row by row, two at least, did so on the same rows."""
    asked = [[row.asked for row in eval_rows(stage, name)] for stage in stages]
    having = [rows for rows in asked if rows]
    return len(having) > 1 and all(rows == having[0] for rows in having)


def _interval(rows: Sequence[Measured]) -> tuple[float, float] | None:
    """The 95 % interval of a mean of rows of which those with one prompt hang together (a ratio of sums)."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        groups[row.prompt].append(row.value)
    if len(groups) < 2:
        return None
    mean, count = math.fsum(row.value for row in rows) / len(rows), len(groups)
    between = math.fsum((math.fsum(own) - mean * len(own)) ** 2 for own in groups.values())
    half = Z95 * math.sqrt(count / (count - 1) * between) / len(rows)
    return mean - half, mean + half


def difference(first: Result, other: Result) -> Result:
    """The other minus the first, with the interval that can be told."""
    value = other.value - first.value
    if first.rows and [row.asked for row in first.rows] == [row.asked for row in other.rows]:
        pairs = zip(first.rows, other.rows, strict=True)
        return Result(value, _interval([Measured(a.asked, a.prompt, b.value - a.value) for a, b in pairs]))
    if first.interval is None or other.interval is None:
        return Result(value)
    down = math.hypot(other.value - other.interval[0], first.interval[1] - first.value)
    up = math.hypot(other.interval[1] - other.value, first.value - first.interval[0])
    return Result(value, (value - down, value + up))
