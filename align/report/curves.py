"""Curves of training: losses of base and sft, losses and accuracies of pmp, rm and dpo, rejection sampling's rounds,
PPO.

What has no data is left out; of PPO the critic's warm-up is shaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

from matplotlib.axes import Axes

from align.report.names import PART, reward_named, section_of
from align.report.style import PAGE, line, over, smooth
from align.report.svg import Panel
from align.runs.run_files import Row, Run, Series, StageFiles, clean, number

OF_ROUNDS = (  # the best is that of as many samples as every prompt has scores of, which may not be all
    ("score_single", "one sample, on average"),
    ("score_best", "best of k samples"),
    ("score_greedy", "held-out, greedy"),
)
ROLLOUTS, HELD_OUT, GREEDY = "rollouts", "held-out prompts", "held-out, greedy"
COLORS = (PAGE.blue, PAGE.orange, PAGE.aqua)


@dataclass(frozen=True, slots=True)
class Plot:
    """Keys of `metrics.jsonl` and their labels; `low` cuts the axis where a few wild values would
    hide the rest, `zero` makes it begin at 0, `spread` is the key of a standard deviation, `even` is what neither side
    being better looks like."""

    title: str
    unit: str
    keys: tuple[tuple[str, str], ...]
    low: float | None = None
    zero: bool = False
    spread: str | None = None
    even: float | None = None


SCORE = Plot(
    "reward (raw score)",
    "score",
    (("score/mean", ROLLOUTS), ("eval/score", HELD_OUT), ("eval/score_greedy", GREEDY)),
    spread="score/std",
)
PLOTS = (
    Plot(
        "gold reward (never trained on)",
        "score",
        (("eval/gold", HELD_OUT), ("eval/gold_greedy", GREEDY)),
    ),
    Plot(
        "win rate against the policy at the start",
        "share of the judge's verdicts",
        (("eval/win_rate", HELD_OUT), ("eval/win_rate_greedy", GREEDY)),
        even=0.5,
    ),
    Plot(
        "reward against gold on the policy's own replies",
        "share of pairs",
        (("eval/rm_accuracy", HELD_OUT),),
        even=0.5,
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


def losses(run: Run) -> Iterator[Panel]:
    """Training and held-out loss of base and sft; for base beside the unigram entropy."""
    for stage in run.shown_in("supervised"):
        if _has(stage, "loss"):
            yield _loss(stage, "nats a token", number(stage.summary.get("unigram_entropy")))


def preference(run: Run) -> Iterator[Panel]:
    """Loss and accuracy of pmp, rm and dpo."""
    for stage in run.shown_in("reward"):
        if _has(stage, "loss", "accuracy"):
            yield _loss(stage, "nats a pair")
            yield _accuracy(stage)


def _loss(stage: StageFiles, unit: str, entropy: float | None = None) -> Panel:
    def draw(axes: Axes) -> None:
        line(axes, stage.series("loss"), "training", PAGE.blue)
        line(axes, heldout(stage, "loss"), "held out", PAGE.orange, marker="o", markersize=4)
        if entropy is not None:
            axes.axhline(entropy, color=PAGE.gray, linestyle="--", linewidth=1.2, label="unigram entropy")
        over(axes, "optimizer step")

    return Panel(f"{stage.name}: loss", draw, unit)


def _accuracy(stage: StageFiles) -> Panel:
    def draw(axes: Axes) -> None:
        line(axes, stage.series("accuracy"), "training pairs", PAGE.blue)
        line(axes, heldout(stage, "accuracy"), "held-out pairs", PAGE.orange, marker="o", markersize=4)
        axes.axhline(0.5, color=PAGE.gray, linestyle="--", linewidth=1.2, label="chance")
        over(axes, "optimizer step")

    return Panel(f"{stage.name}: accuracy", draw, "share")


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


def _has(stage: StageFiles, *keys: str) -> bool:
    return any(stage.series(key)[0] or heldout(stage, key)[0] for key in keys)


def rejection_panels(run: Run) -> Iterator[Panel]:
    """Best and median of k replies and their gap over k, of the last round; scores over rounds where there are two."""
    stage = run.stages["rejection"]
    named = reward_named(section_of(run, "rejection"), stage.summary)
    curves = [(name, by_k(stage.summary, name)) for name in ("best", "median", "gap")]
    rounds = [(label, stage.series(key)) for key, label in OF_ROUNDS]
    before = number(stage.summary.get("score_greedy_before"))
    if before is not None and rounds[-1][1][0]:
        steps, values = rounds[-1][1]
        rounds[-1] = (rounds[-1][0], ([0.0, *steps], [before, *values]))
    curves, rounds = ([(label, one) for label, one in part if len(one[0]) > 1] for part in (curves, rounds))

    def draw_curves(axes: Axes) -> None:
        _dotted(axes, curves)
        axes.set(xlabel="k", xscale="log")
        ticks = curves[0][1][0]
        axes.set_xticks(ticks, [f"{k:g}" for k in ticks])
        axes.minorticks_off()

    def draw_rounds(axes: Axes) -> None:
        _dotted(axes, rounds)
        over(axes, "round (0: before)")

    if curves:
        yield Panel(f"best of k replies, by the {named}", draw_curves, "score")
    if rounds:
        yield Panel(f"rounds, by the {named}", draw_rounds, "score")


def _dotted(axes: Axes, curves: list[tuple[str, Series]]) -> None:
    for (label, series), color in zip(curves, COLORS, strict=False):
        line(axes, series, label, color, marker="o", markersize=4)


def by_k(summary: Row, name: str) -> Series:
    """k and one of the figures of the best of k, as far as the summary holds numbers."""
    rows = summary.get("by_k")
    found = [(number(row.get("k")), number(row.get(name))) for row in rows or () if isinstance(row, dict)]
    points = sorted((k, value) for k, value in found if k is not None and k > 0 and value is not None)
    return [k for k, _ in points], [value for _, value in points]


def ppo_panels(run: Run) -> Iterator[Panel]:
    """All plots that have data: the reward, its parts, everything else."""
    stage, warmup = run.stages["ppo"], warmup_end(run)
    for at, plot in enumerate(plots_of(stage)):
        yield _over_iterations(stage, plot, warmup, "critic warm-up" if at == 0 else None)


def plots_of(stage: StageFiles) -> list[Plot]:
    """The plots of a ppo stage that have data, its reward's parts after the reward."""
    logged = dict.fromkeys(key for row in stage.metrics for key in row)
    parts = [found[1] for key in logged if (found := PART.fullmatch(key))]
    every = (SCORE, *map(_of_part, parts), *PLOTS)
    return [plot for plot in every if any(stage.series(key)[0] for key, _ in plot.keys)]


def _of_part(part: str) -> Plot:
    keys = ((f"score/{part}/mean", ROLLOUTS), (f"eval/score/{part}/mean", HELD_OUT))
    return Plot(f"part of the reward: {clean(part, 40)}", "score", keys, spread=f"score/{part}/std")


def _over_iterations(stage: StageFiles, plot: Plot, warmup: float, shaded: str | None) -> Panel:
    def draw(axes: Axes) -> None:
        for (key, label), color in zip(plot.keys, COLORS, strict=False):
            line(axes, stage.series(key), label, color)
        if plot.spread:
            _band(axes, stage, plot)
        if plot.even is not None:
            axes.axhline(plot.even, color=PAGE.gray, linestyle="--", linewidth=1.2, label="neither better")
        if warmup:
            axes.axvspan(0, warmup, color=PAGE.violet, alpha=0.14, linewidth=0, label=shaded)
        over(axes, "iteration")
        cut_below(axes, plot)

    return Panel(plot.title, draw, plot.unit if plot.even is None else looks_judged_by(stage) or plot.unit)


def cut_below(axes: Axes, plot: Plot) -> None:
    """The axis begins where the plot says."""
    if plot.zero or (plot.low is not None and axes.get_ylim()[0] < plot.low):
        axes.set_ylim(bottom=plot.low or 0)


def looks_judged_by(stage: StageFiles) -> str:
    """Who decided in the looks of training, as the summary tells it at the end."""
    told = stage.summary.get("looks_judged_by")
    return f"judged by {clean(told, 200)}" if isinstance(told, str) and told.strip() else ""


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


def _band(axes: Axes, stage: StageFiles, plot: Plot) -> None:
    """One standard deviation around the first curve."""
    means, stds = (dict(zip(*stage.series(key), strict=True)) for key in (plot.keys[0][0], plot.spread))
    steps = sorted(means.keys() & stds.keys())
    if not steps:
        return
    middle, spread = (smooth([values[step] for step in steps]) for values in (means, stds))
    low = [a - b for a, b in zip(middle, spread, strict=True)]
    high = [a + b for a, b in zip(middle, spread, strict=True)]
    axes.fill_between(steps, low, high, color=PAGE.blue, alpha=0.12, linewidth=0, label="± 1 standard deviation")


def gold_against_proxy(run: Run) -> Iterator[Panel]:
    """What training optimises and what judges it, over the square root of the KL, at the looks of training; a panel for
    the gold score and one for a judge's win rate.

    The axis of Gao, Schulman and Hilton (2022), "Scaling laws for reward model overoptimization": where the gold score
    falls while the proxy's rises, the proxy is over-optimised. Both change from the first look on; they have no scale
    in common, so each is drawn in shares of its own largest change, which the legend tells.
    """
    stage = run.stages["ppo"]
    proxy, unit = over_distance(stage, "eval/score"), "change since the first look, 1 = its largest"
    for key, name, by in (("eval/gold", "gold", ""), (WIN_RATE, "win rate", looks_judged_by(stage))):
        judged = over_distance(stage, key)

        def draw(axes: Axes, judged: Series = judged, name: str = name) -> None:
            for series, label, color in ((proxy, "proxy, trained on", PAGE.blue), (judged, name, PAGE.orange)):
                _change(axes, series, label, color)
            axes.axhline(0, color=PAGE.gray, linewidth=1.2)
            axes.set_xlabel(DISTANCE)

        if len(judged[0]) > 1 and len(proxy[0]) > 1:
            yield Panel(f"{name} against proxy", draw, "; ".join(filter(None, (unit, by))))


WIN_RATE = "eval/win_rate"
DISTANCE = "√ KL from the reference, nats a reply"


def over_distance(stage: StageFiles, key: str) -> Series:
    """Square roots of the KL and values of a figure at every look that has both, in order of training. The win rate is
    one half at the start, where the policy is compared with itself."""
    kls, values = (dict(zip(*stage.series(name), strict=True)) for name in ("eval/kl", key))
    if key == WIN_RATE and values:
        values = {0.0: 0.5} | values
    points = [(sqrt(max(kls[step], 0.0)), value) for step, value in values.items() if step in kls]
    return [x for x, _ in points], [y for _, y in points]


def _change(axes: Axes, series: Series, label: str, color: str) -> None:
    changes = [value - series[1][0] for value in series[1]]
    largest = max(changes, key=abs)
    shares = [change / (abs(largest) or 1.0) for change in changes]
    label = f"{label}, largest change {largest:+.3g}"
    line(axes, (series[0], shares), label, color, marker="o", markersize=4, linestyle="-")
