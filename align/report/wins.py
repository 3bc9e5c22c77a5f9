"""Win, tie and loss of PPO against the policy it started from, as stacked bars by category."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align.report.outcomes import Counts, by_category
from align.report.rejection import starting_policy
from align.report.run import Run
from align.report.style import Theme, panels
from align.runtime.terminal import shortened

MAX_CATEGORIES = 16


def win_tie_loss(run: Run, theme: Theme) -> Figure | None:
    """A panel a decoding; the largest categories, the rest together."""
    tables = {decoding: _largest(table) for decoding, table in by_category(run.stages["ppo"]).items()}
    if not tables:
        return None
    figure, every = panels(len(tables), 2, height=1.2 + 0.33 * max(map(len, tables.values())))
    for axes, (decoding, table) in zip(every, tables.items(), strict=True):
        _stacked(axes, table, theme)
        axes.set(title=f"PPO against {starting_policy(run)}, {decoding}")
    return figure


def _largest(table: dict[str, Counts]) -> dict[str, Counts]:
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


def _stacked(axes: Axes, table: dict[str, Counts], theme: Theme) -> None:
    parts = (("win", theme.blue, "white"), ("tie", theme.gray, "#1b1b1a"), ("loss", theme.orange, "#1b1b1a"))
    for at, counts in enumerate(table.values()):
        left = 0.0
        for name, color, ink in parts:
            count = getattr(counts, name)
            share = count / counts.total if counts.total else 0.0
            label = name if at == 0 else None
            axes.barh(at, share, left=left, height=0.74, color=color, label=label, edgecolor=theme.surface, linewidth=1)
            if share > 0.07:
                axes.text(left + share / 2, at, str(count), ha="center", va="center", fontsize=8.5, color=ink)
            left += share
    labels = [shortened(name, 28, "…") for name in table]
    axes.set_yticks(range(len(table)), labels, color=theme.ink)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09 if len(table) > 3 else -0.22), ncols=3)
