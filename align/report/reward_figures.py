"""Figures of reward models on held-out pairs: accuracies with intervals, and the scores of chosen and rejected."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align.evaluation.shares import wilson
from align.evaluation.table import percent
from align.report.accuracy import Bar, accuracy_bars, reliability_rows, scored
from align.report.style import Theme, legend, panels
from align.runs.run_files import Run, StageFiles, number

KINDS = (("model", "reward model"), ("length", "by length alone"), ("other", "other yardsticks"))


def accuracies(run: Run, theme: Theme) -> Figure | None:
    """Horizontal bars, a panel a stage, 95 % Wilson intervals."""
    found = {stage.name: bars for stage in run.shown_in("reward") if (bars := accuracy_bars(stage))}
    if not found:
        return None
    longest = max(map(len, found.values()))
    figure, every = panels(len(found), 2, height=1.2 + 0.34 * longest)
    for axes, (name, bars) in zip(every, found.items(), strict=True):
        _bars(axes, bars, theme)
        axes.set_ylim(1.05 * longest, -0.6)  # bars of one thickness in both panels
        axes.set(title=f"{name}: accuracy on held-out pairs")
    return figure


def _bars(axes: Axes, bars: list[Bar], theme: Theme) -> None:
    colors = {"model": theme.blue, "length": theme.gray, "other": theme.violet}
    at, ticks, previous = 0.0, {}, None
    for bar in bars:
        at += 0.0 if previous is None else 0.8 if bar.part == previous else 1.15
        label = dict(KINDS)[bar.kind]
        taken = axes.get_legend_handles_labels()[1]
        axes.barh(at, bar.share, height=0.7, color=colors[bar.kind], label=None if label in taken else label)
        right = bar.share
        if bar.low is not None and bar.high is not None:
            spread = [[max(0.0, bar.share - bar.low)], [max(0.0, bar.high - bar.share)]]
            axes.errorbar(bar.share, at, xerr=spread, color=theme.ink, linewidth=1.1, capsize=2.5)
            right = max(right, bar.high)
        axes.text(right + 0.015, at, f"{100 * bar.share:.1f} %", va="center", fontsize=8.5)
        ticks.setdefault(bar.part, []).append(at)
        previous = bar.part
    axes.set_yticks([sum(own) / len(own) for own in ticks.values()], list(ticks), color=theme.ink)
    axes.axvline(0.5, color=theme.muted, linestyle="--", linewidth=1)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.16)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    legend(axes, loc="upper right", bbox_to_anchor=(1.0, -0.1 if len(bars) > 4 else -0.16), ncols=3)


def score_distributions(run: Run, theme: Theme) -> Figure | None:
    """Histograms of the scores of chosen and rejected replies, a panel a stage."""
    found = {stage.name: rows for stage in run.shown_in("reward") if (rows := scored(stage))}
    if not found:
        return None
    figure, every = panels(len(found), 2, height=3.0)
    for axes, (name, rows) in zip(every, found.items(), strict=True):
        sides = {side: np.array([float(row[f"{side}_score"]) for row in rows]) for side in ("chosen", "rejected")}
        low, high = np.quantile(np.concatenate(list(sides.values())), [0.002, 0.998])
        edges = np.linspace(low, high if high > low else low + 1, min(40, 8 + len(rows) // 8) + 1)
        for (side, scores), color in zip(sides.items(), (theme.blue, theme.orange), strict=True):
            inside = np.clip(scores, edges[0], edges[-1])  # outliers count in the last bin, instead of stretching all
            axes.hist(inside, edges, histtype="stepfilled", color=color, alpha=0.28)
            axes.hist(
                inside, edges, histtype="step", color=color, linewidth=1.6, label=f"{side}, mean {scores.mean():.2f}"
            )
        axes.set(title=f"{name}: scores of held-out replies", xlabel="score", ylabel="replies")
        axes.margins(y=0.2)
        legend(axes)
    return figure


def reliability_plot(run: Run, theme: Theme) -> Figure | None:
    """Share right over the stated probability, a panel a stage, with 95 % Wilson intervals; with the scores as they are
    and, where the summary has it, at the cross-fitted temperature."""
    found = [stage for stage in run.shown_in("reward") if reliability_rows(stage)]
    if not found:
        return None
    figure, every = panels(len(found), 2, height=3.4)
    for axes, stage in zip(every, found, strict=True):
        axes.plot([0.5, 1], [0.5, 1], color=theme.gray, linestyle="--", linewidth=1.2, label="as stated")
        _reliability(axes, stage, "", "as scored", color=theme.blue, marker="o")
        _reliability(axes, stage, "_at_temperature", "at a temperature", color=theme.orange, marker="s")
        title = f"{stage.name}: calibration on held-out pairs"
        axes.set(title=title, xlabel="stated probability", ylabel="share right")
        legend(axes, loc="lower right")
    return figure


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
