"""The PPO panel: one small plot a figure, the critic's warm-up shaded. Plots without data are left out."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align.report.run import Run, Series, StageFiles, number
from align.report.style import Theme, legend, line, panels, running_mean

ROLLOUTS, HELD_OUT = "rollouts", "held-out prompts"


@dataclass(frozen=True, slots=True)
class Plot:
    """Keys of `metrics.jsonl` and their labels; `low` cuts the axis where a few wild values would hide the rest."""

    title: str
    unit: str
    keys: tuple[tuple[str, str], ...]
    low: float | None = None
    spread: str | None = None


PLOTS = (
    Plot(
        "reward (raw score)",
        "score",
        (("score/mean", ROLLOUTS), ("eval/score", HELD_OUT), ("eval/score_greedy", "held-out, greedy")),
        spread="score/std",
    ),
    Plot("KL from the reference", "nats a reply", (("kl/reply", ROLLOUTS), ("eval/kl", HELD_OUT))),
    Plot("entropy", "nats a token", (("entropy", ROLLOUTS), ("eval/entropy", HELD_OUT))),
    Plot("clip fractions", "share of tokens", (("policy/clipped", "policy"), ("value/clipped", "value"))),
    Plot("value loss", "", (("value/loss", "value loss"),)),
    Plot("explained variance of the critic", "", (("value/explained_variance", "critic"),), low=-1.0),
    Plot("reply length", "tokens", (("length/mean", "mean"), ("length/max", "longest"), ("eval/length", HELD_OUT))),
    Plot("end rate and variety", "share of replies", (("end_rate", "end by themselves"), ("distinct", "distinct"))),
    Plot("KL of one update, approximate", "nats a token", (("policy/approx_kl", "policy"),)),
    Plot("ptx loss", "nats a token", (("ptx/loss", "ptx"),)),
    Plot("gradient norms, before clipping", "", (("policy/grad_norm", "policy"), ("value/grad_norm", "critic"))),
    Plot(
        "seconds an iteration",
        "seconds",
        (("seconds/total", "all"), ("seconds/rollout", "rollout"), ("seconds/update", "update")),
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
        if plot.low is not None and axes.get_ylim()[0] < plot.low:
            axes.set_ylim(bottom=plot.low)
        axes.set(title=plot.title, xlabel="iteration", ylabel=plot.unit)
        axes.margins(y=0.12)
        legend(axes)
    if warmup:
        every[0].annotate(
            "warm-up",
            (warmup / 2, 0.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            color=theme.violet,
            fontsize=8,
        )
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
    window = len(steps) // 20
    series: list[Series] = [(steps, [values[step] for step in steps]) for values in (means, stds)]
    middle, spread = (running_mean(values, window) if window > 2 else values for _, values in series)
    low = [a - b for a, b in zip(middle, spread, strict=True)]
    high = [a + b for a, b in zip(middle, spread, strict=True)]
    axes.fill_between(steps, low, high, color=theme.blue, alpha=0.12, linewidth=0, label="± 1 standard deviation")
