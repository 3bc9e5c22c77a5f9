"""The curves of several runs in the same plots: a colour a run, held-out figures dashed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from align.recipe import STAGES
from align.report.curves import (
    DISTANCE,
    HELD_OUT,
    ROLLOUTS,
    WIN_RATE,
    Plot,
    by_k,
    cut_below,
    heldout,
    over_distance,
    plots_of,
)
from align.report.style import PAGE, line, over
from align.report.svg import Panel
from align.runs.run_files import Run, Series, StageFiles

COLORS = ("blue", "orange", "aqua", "violet", "rose", "gray")
OVER_DISTANCE = (
    ("eval/gold", "gold reward over the distance", "score"),
    (WIN_RATE, "win rate over the distance", "share of the judge's verdicts"),
    ("eval/score", "reward over the distance", "score"),
)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the runs: how it is called beside the others, and its colour."""

    name: str
    run: Run
    color: str


def overlays(sides: Sequence[Side]) -> dict[str, list[Panel]]:
    """The panels of all stages that have curves, by the heading that they stand under."""
    kinds = {"supervised": _losses, "reward": _preferences, "rejection": _rejection, "ppo": _ppo}
    found: dict[str, list[Panel]] = {}
    for name, stage in STAGES.items():
        for panel in kinds[stage.figures](sides, name):
            found.setdefault("PPO" if stage.figures == "ppo" else "What PPO starts from", []).append(panel)
    return found


def _losses(sides: Sequence[Side], name: str, unit: str = "nats a token") -> Iterator[Panel]:
    yield from _trained(sides, name, "loss", unit)


def _preferences(sides: Sequence[Side], name: str) -> Iterator[Panel]:
    yield from _losses(sides, name, "nats a pair")
    yield from _trained(sides, name, "accuracy", "share")


def _trained(sides: Sequence[Side], name: str, key: str, unit: str) -> Iterator[Panel]:
    stages = [side.run.stages[name] for side in sides]
    solid, dashed = [stage.series(key) for stage in stages], [heldout(stage, key) for stage in stages]
    if any(series[0] for series in (*solid, *dashed)):
        yield Panel(f"{name}: {key}", lambda axes: _draw(axes, sides, solid, dashed, "optimizer step"), unit)


def _rejection(sides: Sequence[Side], name: str) -> Iterator[Panel]:
    best = [by_k(side.run.stages[name].summary, "best") for side in sides]
    if any(len(series[0]) > 1 for series in best):
        yield Panel("reward of the best of k replies", lambda axes: _draw(axes, sides, best, (), "k"), "score")


def _ppo(sides: Sequence[Side], name: str) -> Iterator[Panel]:
    stages = [side.run.stages[name] for side in sides]
    for plot in {plot.title: plot for stage in stages for plot in plots_of(stage)}.values():
        what = ", ".join(filter(None, (plot.unit, "" if plot.keys[0][1] in (ROLLOUTS, HELD_OUT) else plot.keys[0][1])))
        yield Panel(plot.title, lambda axes, plot=plot: _draw_plot(axes, sides, stages, plot), what)
    for key, title, unit in OVER_DISTANCE:
        found = [over_distance(stage, key) for stage in stages]
        if any(len(series[0]) > 1 for series in found):
            yield Panel(title, lambda axes, found=found: _draw_distances(axes, sides, found), unit)


def _draw_plot(axes: Axes, sides: Sequence[Side], stages: Sequence[StageFiles], plot: Plot) -> None:
    (first, _), *others = plot.keys
    measured = next((key for key, label in others if label == HELD_OUT), None)
    dashed = [stage.series(measured) for stage in stages] if measured else ()
    _draw(axes, sides, [stage.series(first) for stage in stages], dashed, "iteration")
    if plot.even is not None:
        axes.axhline(plot.even, color=PAGE.muted, linewidth=1)
    cut_below(axes, plot)


def _draw(axes: Axes, sides: Sequence[Side], solid: Sequence[Series], dashed: Sequence[Series], what: str) -> None:
    for side, series in zip(sides, solid, strict=True):
        line(axes, series, side.name, getattr(PAGE, side.color))
    for side, series in zip(sides, dashed, strict=False):
        line(axes, series, "", getattr(PAGE, side.color), marker="o", markersize=4, linestyle="--")
    over(axes, what)


def _draw_distances(axes: Axes, sides: Sequence[Side], found: Sequence[Series]) -> None:
    for side, series in zip(sides, found, strict=True):
        line(axes, series, side.name, getattr(PAGE, side.color), marker="o", markersize=4)
    axes.set_xlabel(DISTANCE)
