"""Learning curves of the supervised stages: base and sft (loss), pmp and rm (loss and accuracy)."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align.report.run import Run, Series, StageFiles, number
from align.report.style import Theme, legend, line, panels


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
