"""Who won how many prompts, drawn by category: wins, ties and losses as one bar of shares."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.axes import Axes

from align.report.policy_evaluation import Counts, by_category, starting_policy
from align.report.reward_figures import MOST, SHARES
from align.report.style import PAGE
from align.report.svg import Panel
from align.runs.run_files import Run
from align.runtime.terminal import shortened

MAX_CATEGORIES = 16
PARTS = (("win", PAGE.blue, "#ffffff"), ("tie", PAGE.gray, "#1b1b1a"), ("loss", PAGE.orange, "#1b1b1a"))


def win_tie_loss(run: Run) -> Iterator[Panel]:
    """A panel a decoding; the largest categories, the rest together."""
    for decoding, table in by_category(run.stages["ppo"]).items():
        shown = largest(table)
        yield Panel(
            f"PPO against {starting_policy(run)}, {decoding}",
            lambda axes, shown=shown: _stacked(axes, shown),
            "prompts" if decoding == "greedy" else "replies",
            40.0 + 22.0 * len(shown),
        )


def largest(table: dict[str, Counts]) -> dict[str, Counts]:
    """At most MAX_CATEGORIES rows beside "all"."""
    names = [name for name in table if name != "all"]
    if len(names) <= 1:
        return {name: table[name] for name in names or ["all"]}  # one category is all there is
    if len(names) <= MAX_CATEGORIES:
        return table
    names.sort(key=lambda name: -table[name].total)
    kept, rest = names[: MAX_CATEGORIES - 1], [table[name] for name in names[MAX_CATEGORIES - 1 :]]
    other = Counts(*(sum(getattr(part, field) for part in rest) for field in ("win", "tie", "loss")))
    return {"all": table["all"], **{name: table[name] for name in sorted(kept)}, f"{len(rest)} others": other}


def _stacked(axes: Axes, table: dict[str, Counts]) -> None:
    for at, counts in enumerate(table.values()):
        left = 0.0
        for name, color, ink in PARTS:
            count = getattr(counts, name)
            share = count / counts.total if counts.total else 0.0
            label = name if at == 0 else None
            axes.barh(at, share, left=left, height=0.74, color=color, label=label, edgecolor=PAGE.surface, linewidth=1)
            if share > 0.02 + 0.04 * len(str(count)):
                axes.text(left + share / 2, at, str(count), ha="center", va="center_baseline", fontsize=10, color=ink)
            left += share
    axes.set_yticks(range(len(table)), [shortened(name, MOST, "…") for name in table], color=PAGE.ink)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_xticks(*SHARES)
