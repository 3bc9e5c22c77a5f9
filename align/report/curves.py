"""Curves of training: loss of base and sft, loss and accuracy of pmp and rm, rejection sampling's rounds, PPO's panel.

Plots without data are left out; of PPO the critic's warm-up is shaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align.report.style import Theme, legend, line, panels, smooth
from align.runs.run_files import Row, Run, Series, StageFiles, number

OF_ROUNDS = (("score_single", "one sample"), ("score_best", "best of all"), ("score_greedy", "held-out, greedy"))
ROLLOUTS, HELD_OUT = "rollouts", "held-out prompts"


@dataclass(frozen=True, slots=True)
class Plot:
    """Keys of `metrics.jsonl` and their labels; `low` cuts the axis where a few wild values would
    hide the rest, `zero` makes it begin at 0, `spread` is the key of a standard deviation."""

    title: str
    unit: str
    keys: tuple[tuple[str, str], ...]
    low: float | None = None
    zero: bool = False
    spread: str | None = None


PLOTS = (
    Plot(
        "reward (raw score)",
        "score",
        (("score/mean", ROLLOUTS), ("eval/score", HELD_OUT), ("eval/score_greedy", "held-out, greedy")),
        spread="score/std",
    ),
    Plot(
        "gold reward (never trained on)",
        "score",
        (("eval/gold", HELD_OUT), ("eval/gold_greedy", "held-out, greedy")),
    ),
    Plot("KL from the reference", "nats a reply", (("kl/reply", ROLLOUTS), ("eval/kl", HELD_OUT))),
    Plot(
        "KL a token",
        "nats a token",
        (("kl/token", "sampled tokens (k1)"), ("kl/full_token", "whole vocabulary")),
    ),
    Plot("entropy", "nats a token", (("entropy", ROLLOUTS), ("eval/entropy", HELD_OUT))),
    Plot("clip fractions", "share of tokens", (("policy/clipped", "policy"), ("value/clipped", "value")), zero=True),
    Plot("value loss", "", (("value/loss", "value loss"),)),
    Plot("explained variance", "", (("value/explained_variance", "critic"),), low=-1.0),
    Plot(
        "reply length",
        "tokens",
        (("length/mean", "mean"), ("length/max", "longest"), ("eval/length", HELD_OUT)),
        zero=True,
    ),
    Plot(
        "end rate and variety",
        "share",
        (
            ("end_rate", "end by themselves"),
            ("distinct", "distinct replies"),
            ("distinct_2", "distinct pairs of tokens"),
        ),
    ),
    Plot("KL of an update", "nats a token", (("policy/approx_kl", "policy"),), zero=True),
    Plot("ptx loss", "nats a token", (("ptx/loss", "ptx"),)),
    Plot(
        "gradient norms", "before clipping", (("policy/grad_norm", "policy"), ("value/grad_norm", "critic")), zero=True
    ),
    Plot(
        "seconds an iteration",
        "seconds",
        (("seconds/total", "all"), ("seconds/rollout", "rollout"), ("seconds/update", "update")),
        zero=True,
    ),
)


def losses(run: Run, theme: Theme) -> Figure | None:
    """Training and held-out loss of base and sft; for base beside the unigram entropy."""
    stages = [stage for stage in run.shown_in("supervised") if _has(stage, "loss")]
    if not stages:
        return None
    figure, every = panels(len(stages), 2, height=3.1)
    for axes, stage in zip(every, stages, strict=True):
        _loss(axes, stage, theme, "nats a token")
        entropy = number(stage.summary.get("unigram_entropy"))
        if entropy is not None:
            axes.axhline(entropy, color=theme.gray, linestyle="--", linewidth=1.2, label="unigram entropy")
        legend(axes)
    return figure


def preference(run: Run, theme: Theme) -> Figure | None:
    """Loss and accuracy of pmp and rm, a column a stage."""
    stages = [stage for stage in run.shown_in("reward") if _has(stage, "loss", "accuracy")]
    if not stages:
        return None
    figure, every = panels(2 * len(stages), len(stages), height=2.8)
    for axes, stage in zip(every, stages, strict=False):
        _loss(axes, stage, theme, "nats a pair")
        legend(axes)
    for axes, stage in zip(every[len(stages) :], stages, strict=True):
        line(axes, stage.series("accuracy"), "training pairs", theme.blue)
        line(axes, heldout(stage, "accuracy"), "held-out pairs", theme.orange, marker="o", markersize=5)
        axes.axhline(0.5, color=theme.gray, linestyle="--", linewidth=1.2, label="chance")
        axes.set(title=f"{stage.name}: accuracy", xlabel="optimizer step", ylabel="share")
        legend(axes, loc="lower right")
    return figure


def heldout(stage: StageFiles, key: str) -> Series:
    """A held-out figure over steps: those logged in training between the ones measured before and after it (of a best
    model: at its step)."""
    points = dict(zip(*stage.series(f"eval_{key}"), strict=True))
    name = {"loss": "heldout_loss"}.get(key, key)
    before, after = number(stage.summary.get(f"{name}_before")), number(stage.summary.get(name))
    if before is not None:
        points.setdefault(0.0, before)
    if after is not None:
        measured = (number(stage.summary.get(name)) for name in ("best_step", "steps"))
        points[next((step for step in measured if step is not None), float(stage.last_step))] = after
    return sorted(points), [points[step] for step in sorted(points)]


def _loss(axes: Axes, stage: StageFiles, theme: Theme, unit: str) -> None:
    line(axes, stage.series("loss"), "training", theme.blue)
    line(axes, heldout(stage, "loss"), "held out", theme.orange, marker="o", markersize=5)
    axes.set(title=f"{stage.name}: loss", xlabel="optimizer step", ylabel=unit)


def _has(stage: StageFiles, *keys: str) -> bool:
    return any(stage.series(key)[0] or heldout(stage, key)[0] for key in keys)


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


def ppo_panel(run: Run, theme: Theme) -> Figure | None:
    """All plots that have data, three a row."""
    stage = run.stages["ppo"]
    shown = [plot for plot in PLOTS if any(stage.series(key)[0] for key, _ in plot.keys)]
    if not shown:
        return None
    figure, every = panels(len(shown), 3, height=2.6)
    warmup = warmup_end(run)
    for axes, plot in zip(every, shown, strict=True):
        if warmup:
            axes.axvspan(0, warmup, color=theme.violet, alpha=0.14, linewidth=0)
        for (key, label), color in zip(plot.keys, (theme.blue, theme.orange, theme.aqua), strict=False):
            line(axes, stage.series(key), label, color)
        if plot.spread:
            _band(axes, stage, plot, theme)
        axes.set(title=plot.title, xlabel="iteration", ylabel=plot.unit)
        axes.margins(y=0.14)
        if plot.zero or (plot.low is not None and axes.get_ylim()[0] < plot.low):
            axes.set_ylim(bottom=plot.low or 0)
        legend(axes)
    if warmup:
        place, color = (warmup / 2, 0.97), theme.violet
        style = {"ha": "center", "va": "top", "rotation": 90, "fontsize": 7.5, "color": color}
        every[0].annotate("critic warm-up", place, xycoords=("data", "axes fraction"), **style)
    return figure


def warmup_end(run: Run) -> float:
    """The iteration up to which the critic alone was trained; 0 without warm-up or when nothing tells.

    `critic_warmup_steps` counts optimizer steps; how many an iteration makes is read off the metrics. Without a recipe
    it is the first iteration after which the logged `warming_up` is off.
    """
    stage = run.stages["ppo"]
    section = run.recipe.get("ppo")
    wanted = number(section.get("critic_warmup_steps")) if isinstance(section, dict) else None
    steps, optimizer_steps = stage.series("optimizer_steps")
    if wanted is not None and steps and steps[-1] > 0 and optimizer_steps[-1] > 0:
        return min(wanted / (optimizer_steps[-1] / steps[-1]), steps[-1])
    flags = list(zip(*stage.series("warming_up"), strict=True))
    if not any(flag for _, flag in flags):
        return 0.0
    last = max(step for step, flag in flags if flag)
    return min((step for step, flag in flags if not flag and step > last), default=last)


def _band(axes: Axes, stage: StageFiles, plot: Plot, theme: Theme) -> None:
    """One standard deviation around the first curve."""
    means, stds = (dict(zip(*stage.series(key), strict=True)) for key in (plot.keys[0][0], plot.spread))
    steps = sorted(means.keys() & stds.keys())
    middle, spread = (smooth([values[step] for step in steps]) for values in (means, stds))
    low = [a - b for a, b in zip(middle, spread, strict=True)]
    high = [a + b for a, b in zip(middle, spread, strict=True)]
    axes.fill_between(steps, low, high, color=theme.blue, alpha=0.12, linewidth=0, label="± 1 standard deviation")
