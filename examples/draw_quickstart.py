"""The picture of README: what PPO did in one finished quickstart, drawn from the files that the run left.

    python examples/draw_quickstart.py runs/quickstart docs/assets

Writes `quickstart.png` and `quickstart-dark.png`. Left, the reward model's score of the replies that PPO learns from,
and the KL that they cost; right, the gold score of held-out replies, which nothing was trained on, before and after.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align.report.curves import warmup_end
from align.report.style import DARK, LIGHT, Theme, legend, line, panels, png
from align.runs.run_files import Run, read_run

CURVES = (("score/mean", "Learned reward (optimised)", "mean score"), ("kl/reply", "KL from SFT", "nats a reply"))


def draw(run: Run, theme: Theme) -> Figure:
    """Two curves over iterations, and the gold score by category."""
    figure, every = panels(len(CURVES) + 1, 3, width=10.5, height=3.1)
    for axes, (key, title, unit) in zip(every, CURVES, strict=False):
        axes.axvspan(0, warmup_end(run), color=theme.violet, alpha=0.14, linewidth=0, label="critic warm-up")
        steps, values = run.stages["ppo"].series(key)
        line(axes, (steps, values), "each iteration", theme.gray, linewidth=0.9)
        means = [fmean(values[max(0, at - 5) : at + 6]) for at in range(len(values))]
        line(axes, (steps, means), "mean of 11", theme.blue, linewidth=2)
        axes.set(title=title, xlabel="iteration", ylabel=unit)
        legend(axes, loc="lower right")
    before_and_after(every[-1], gold_by_category(run.stages["ppo"].evals), theme)
    return figure


def gold_by_category(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Category -> mean gold score of the sampled replies, of the policy that PPO started from and of PPO's."""
    scores: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for name in ("all", row["category"]):
            for into, policy in zip(scores.setdefault(name, ([], [])), ("sft", "ppo"), strict=True):
                into.append(fmean(reply["gold"] for reply in row["sampled"][policy]))
    return {name: (fmean(scores[name][0]), fmean(scores[name][1])) for name in sorted(scores)}


def before_and_after(axes: Axes, gold: dict[str, tuple[float, float]], theme: Theme) -> None:
    """A line a category from the score before to the score after."""
    for at, (before, after) in enumerate(gold.values()):
        axes.plot([before, after], [at, at], color=theme.gray, linewidth=2, zorder=1)
        axes.scatter([before], [at], color=theme.orange, s=44, label=None if at else "SFT", zorder=2)
        axes.scatter([after], [at], color=theme.blue, s=44, marker="D", label=None if at else "PPO", zorder=2)
        axes.annotate(f"{after - before:+.2f}", (after, at), (7, 0), textcoords="offset points", va="center", size=8)
    axes.set_yticks(range(len(gold)), list(gold), color=theme.ink)
    axes.set(title="Gold score (never trained on)", xlabel="mean of the sampled replies")
    axes.invert_yaxis()
    axes.margins(x=0.2, y=0.1)
    legend(axes, loc="lower right")


def main(run_folder: str | Path, out_folder: str | Path) -> None:
    """Draw both themes."""
    run = read_run(Path(run_folder))
    for theme in (LIGHT, DARK):
        image = png(lambda theme: draw(run, theme), theme)
        Path(out_folder, f"quickstart{theme.suffix}.png").write_bytes(image or b"")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw README's picture from a finished quickstart.")
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("out", help="the folder that gets the pictures")
    args = parser.parse_args()
    main(args.run, args.out)
