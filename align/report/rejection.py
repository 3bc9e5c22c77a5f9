"""Rejection sampling: what the best of k replies is worth, and how the rounds went."""

from __future__ import annotations

from matplotlib.figure import Figure

from align.report.run import Row, Run, Series, number
from align.report.style import Theme, legend, line, panels

OF_ROUNDS = (("score_single", "one sample"), ("score_best", "best of all"), ("score_greedy", "held-out, greedy"))


def rejection_panel(run: Run, theme: Theme) -> Figure | None:
    """Best and median of k replies and their gap over k, of the last round; scores over rounds where there are two."""
    stage, colors = run.stages["rejection"], (theme.blue, theme.orange, theme.aqua)
    curves = [(name, by_k(stage.summary, name)) for name in ("best", "median", "gap")]
    curves = [(name, curve) for name, curve in curves if len(curve[0]) > 1]
    rounds = [(label, stage.series(key)) for key, label in OF_ROUNDS]
    before = number(stage.summary.get("score_greedy_before"))
    if before is not None and rounds[-1][1][0]:
        steps, values = rounds[-1][1]
        rounds[-1] = (rounds[-1][0], ([0.0, *steps], [before, *values]))
    rounds = [(label, series) for label, series in rounds if len(series[0]) > 1]
    shown = [part for part in (curves, rounds) if part]
    if not shown:
        return None
    figure, every = panels(len(shown), 2, height=3.1)
    for axes, part in zip(every, shown, strict=True):
        for (label, series), color in zip(part, colors, strict=False):
            line(axes, series, label, color, marker="o", markersize=5)
        if part is curves:
            axes.set(title="reward of the best of k replies", xlabel="k", ylabel="score", xscale="log")
            ticks = curves[0][1][0]
            axes.set_xticks(ticks, [f"{k:g}" for k in ticks])
            axes.minorticks_off()
        else:
            axes.set(title="reward by round", xlabel="round (0: before)", ylabel="score")
            axes.set_xticks(sorted({step for _, series in rounds for step in series[0]}))
        legend(axes)
    return figure


def by_k(summary: Row, name: str) -> Series:
    """k and one of the figures of the best of k, as far as the summary holds numbers."""
    rows = summary.get("by_k")
    found = [(number(row.get("k")), number(row.get(name))) for row in rows or () if isinstance(row, dict)]
    points = sorted((k, value) for k, value in found if k is not None and k > 0 and value is not None)
    return [k for k, _ in points], [value for _, value in points]


def starting_policy(run: Run) -> str:
    """What PPO's policy was before: rejection sampling's model where ppo started from it, else the SFT model."""
    origins = run.stages["ppo"].summary.get("origins")
    policy = origins.get("policy") if isinstance(origins, dict) else None
    return "RS" if isinstance(policy, dict) and policy.get("value") == "rejection" else "SFT"
