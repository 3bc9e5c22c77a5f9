"""The PPO panel: one small plot a figure, the critic's warm-up shaded. Plots without data are left out."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align.report.run import Run, StageFiles, number
from align.report.style import Theme, legend, line, panels, smooth

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
