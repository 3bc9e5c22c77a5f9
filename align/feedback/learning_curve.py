"""What more comparisons are expected to add to a reward model's accuracy, from how it learned from those it has.

In its first epoch a reward model judges each pair before it learns from it (prequential evaluation, Dawid 1984), so the
accuracies in its `metrics.jsonl` are those on pairs it had not seen, after as many as it had seen by then. A line is
fitted, accuracy = a + b ln(pairs), the form that Bai et al. 2022 (2204.05862, equation A.1) found for preference
models, each point weighing as many pairs as it counts. N more pairs after n are then expected to bring
b ln((n + N) / n).

What the error holds: the chance of counting so many pairs, widened where the points lie off the line by more than that.
What it does not hold: that the line goes on, that the next pairs are like these (chosen ones are not), and that a
learning rate that falls lifts the last points, which makes b too large; a constant one does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.models.named import reward_of, run_of
from align.recipe.registry import REWARD_STAGES
from align.runs.reading import read_recipe
from align.runs.run_files import read_stage
from align.runtime.json_files import number
from align.runtime.paths import typed_path

FEWEST = 4  # points that a line is fitted to


@dataclass(frozen=True, slots=True)
class Point:
    """`correct` of `counted` pairs were judged rightly after `seen` others."""

    seen: float
    correct: float
    counted: int


@dataclass(frozen=True, slots=True)
class Curve:
    """A fitted line.

    Attributes:
        slope: accuracy gained by e times as many pairs.
        error: of the slope, one standard error.
        seen: pairs that were learned from in all.
    """

    slope: float
    error: float
    seen: int

    def gain(self, more: int) -> dict[str, float]:
        """`gain` and its standard error `gain_error`, as shares of pairs, of so many more of them."""
        stretch = math.log1p(more / self.seen)
        return {"gain": self.slope * stretch, "gain_error": self.error * stretch, "seen": self.seen}


def fitted(points: Sequence[Point], seen: int) -> Curve | None:
    """The line through the points; None where they are too few, or all at one place."""
    used = [point for point in points if point.seen >= 1 and point.counted]
    if len(used) < FEWEST or len({point.seen for point in used}) < 2:
        return None
    logs, counted = np.log([point.seen for point in used]), np.array([point.counted for point in used], float)
    shares = np.array([point.correct for point in used]) / counted
    middle = np.average(logs, weights=counted)
    spread = (counted * (logs - middle) ** 2).sum()
    slope = float((counted * (logs - middle) * shares).sum() / spread)
    line = np.average(shares, weights=counted) + slope * (logs - middle)
    chance = np.average(np.clip(line * (1 - line), 1e-6, None), weights=counted)  # variance of a pair
    off = float((counted * (shares - line) ** 2).sum() / chance / (len(used) - 2))  # 1 where chance is all
    return Curve(slope, math.sqrt(chance * max(off, 1.0) / spread), seen)


def curve_of(path: str | Path) -> Curve | None:
    """The curve of the reward model at `path` where that is a run, or lies in a stage of one; None of any other."""
    run = run_of(path)
    if run is None:
        return None
    place = Path(reward_of(run) or run) if typed_path(path) == run else typed_path(path)
    name = next((stage for stage in REWARD_STAGES if stage in (place.name, place.parent.name)), None)
    if name is None or not (run / name / "recipe.yaml").is_file():
        return None
    left = read_stage(run / name, [])
    batch = (read_recipe(run / name / "recipe.yaml").get(name) or {}).get("batch_size")
    points = list(_points(left.metrics, batch)) if isinstance(batch, int) else []
    seen = left.summary.get("rows")  # the last of them may stand in no row of metrics
    return fitted(points, seen if isinstance(seen, int) else sum(point.counted for point in points)) if points else None


def _points(metrics: Iterable[dict[str, Any]], batch: int) -> Iterable[Point]:
    """A point a row of metrics of the first epoch; a row's accuracy is the mean since the row before."""
    before = 0
    for row in metrics:
        step, accuracy = number(row.get("step")), number(row.get("accuracy"))
        epoch = number(row.get("epoch"))
        if step is None or accuracy is None or epoch is None or epoch > 1 or step <= before:
            continue
        counted = int(step - before) * batch
        yield Point(before * batch + counted / 2, accuracy * counted, counted)
        before = int(step)
