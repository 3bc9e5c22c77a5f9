"""Figures of reward models, and of DPO's implicit rewards, on held-out pairs: accuracies with intervals, and the scores
of chosen and rejected."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes

from align.evaluation.shares import wilson
from align.evaluation.table import percent
from align.report.accuracy import Bar, accuracy_bars, reliability_rows, scored
from align.report.style import PAGE
from align.report.svg import Panel
from align.runs.run_files import Row, Run, StageFiles, number
from align.runtime.terminal import shortened

LOOK = {
    "model": ("by the scores", PAGE.blue),
    "length": ("by length alone", PAGE.gray),
    "other": ("other yardsticks", PAGE.violet),
}
SHARES = ([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
MOST = 24
"""Letters of a bar's name, on the left half of a panel."""


def accuracies(run: Run) -> Iterator[Panel]:
    """Horizontal bars, a panel a stage, 95 % Wilson intervals."""
    for stage in run.shown_in("reward"):
        if bars := accuracy_bars(stage):
            title = f"{stage.name}: accuracy on held-out pairs"
            yield Panel(title, lambda axes, bars=bars: _bars(axes, bars), height=46.0 + 20.0 * len(bars))


def _bars(axes: Axes, bars: list[Bar]) -> None:
    at, ticks, previous = 0.0, {}, None
    for bar in bars:
        at += 0.0 if previous is None else 0.8 if bar.part == previous else 1.15
        label, color = LOOK[bar.kind]
        taken = axes.get_legend_handles_labels()[1]
        axes.barh(at, bar.share, height=0.7, color=color, label=None if label in taken else label)
        right = bar.share
        if bar.low is not None and bar.high is not None:
            spread = [[max(0.0, bar.share - bar.low)], [max(0.0, bar.high - bar.share)]]
            axes.errorbar(bar.share, at, xerr=spread, color=PAGE.ink, linewidth=1.1, capsize=2)
            right = max(right, bar.high)
        axes.text(right + 0.02, at, f"{100 * bar.share:.1f}", va="center_baseline", fontsize=10)
        ticks.setdefault(bar.part, []).append(at)
        previous = bar.part
    names = [shortened(part, MOST, "…") for part in ticks]
    axes.set_yticks([sum(own) / len(own) for own in ticks.values()], names, color=PAGE.ink)
    axes.axvline(0.5, color=PAGE.muted, linestyle="--", linewidth=1)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.2)
    axes.set_xticks(*SHARES)
    axes.set_ylim(at + 0.6, -0.6)


def score_distributions(run: Run) -> Iterator[Panel]:
    """Histograms of the scores of chosen and rejected replies, a panel a stage."""
    for stage in run.shown_in("reward"):
        if rows := scored(stage):
            yield Panel(
                f"{stage.name}: scores of held-out replies", lambda axes, rows=rows: _histogram(axes, rows), "replies"
            )


def _histogram(axes: Axes, rows: list[Row]) -> None:
    sides = {side: np.array([float(row[f"{side}_score"]) for row in rows]) for side in ("chosen", "rejected")}
    low, high = np.quantile(np.concatenate(list(sides.values())), [0.002, 0.998])
    edges = np.linspace(low, high if high > low else low + 1, min(40, 8 + len(rows) // 8) + 1)
    for (side, scores), color in zip(sides.items(), (PAGE.blue, PAGE.orange), strict=True):
        inside = np.clip(scores, edges[0], edges[-1])  # outliers count in the last bin, instead of stretching all
        axes.hist(inside, edges, histtype="stepfilled", color=color, alpha=0.28)
        label = f"{side}, mean {scores.mean():.2f}"
        counts, _ = np.histogram(inside, edges)
        axes.stairs(counts, edges, color=color, linewidth=1.6)
        axes.plot([], [], color=color, label=label)
    axes.set_xlabel("score")


def reliability(run: Run) -> Iterator[Panel]:
    """Share right over the stated probability, a panel a stage, with 95 % Wilson intervals; with the scores as they are
    and, where the summary has it, at the cross-fitted temperature."""
    for stage in run.shown_in("reward"):
        if reliability_rows(stage):
            title = f"{stage.name}: calibration on held-out pairs"
            yield Panel(title, lambda axes, stage=stage: _both(axes, stage), "share right", 240.0)


def _both(axes: Axes, stage: StageFiles) -> None:
    axes.plot([0.5, 1], [0.5, 1], color=PAGE.gray, linestyle="--", linewidth=1.2, label="as stated")
    _reliability(axes, stage, "", "as scored", color=PAGE.blue, marker="o")
    _reliability(axes, stage, "_at_temperature", "at a temperature", color=PAGE.orange, marker="s")
    axes.set_xlabel("stated probability")


def _reliability(axes: Axes, stage: StageFiles, which: str, label: str, **style: str) -> None:
    rows = reliability_rows(stage, f"reliability{which}")
    if not rows:
        return
    spread = []
    for _, right, pairs in rows:
        low, high = wilson(right * pairs, pairs)
        spread.append((max(0.0, right - low), max(0.0, high - right)))
    bars = [list(side) for side in zip(*spread, strict=True)]
    error = number(stage.summary.get(f"calibration_error{which}"))
    label += f", error {percent(error)}" if error is not None else ""
    stated, share = [row[0] for row in rows], [row[1] for row in rows]
    axes.errorbar(stated, share, yerr=bars, linewidth=1.4, markersize=4, capsize=2.5, label=label, **style)
