"""How figures look: quiet axes, colours that colour-blind readers tell apart too, and what all plots are made of.

A page's plots are drawn once, in the colours of `PAGE`, which `align.report.svg` turns into the page's variables;
pictures of documents are PNG, one in LIGHT and one in DARK.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from align.runs.run_files import Series

DPI = 130
LONG = 120


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one theme; `suffix` ends the names of its files. The last five tell curves apart."""

    suffix: str
    surface: str
    ink: str
    muted: str
    grid: str
    gray: str
    blue: str
    orange: str
    aqua: str
    violet: str
    rose: str

    def settings(self) -> dict[str, Any]:
        """As matplotlib's rc parameters."""
        return {
            "figure.facecolor": self.surface,
            "axes.facecolor": self.surface,
            "text.color": self.ink,
            "text.parse_math": False,  # names come from data and may hold a dollar sign
            "axes.labelcolor": self.muted,
            "axes.edgecolor": self.grid,
            "axes.titlecolor": self.ink,
            "axes.titlesize": 10.5,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.labelsize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.formatter.useoffset": False,
            "grid.color": self.grid,
            "grid.linewidth": 0.6,
            "xtick.color": self.muted,
            "ytick.color": self.muted,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
            "lines.linewidth": 1.7,
            "lines.solid_capstyle": "round",
            "legend.framealpha": 0.75,
            "legend.facecolor": self.surface,
            "legend.edgecolor": "none",
            "legend.fontsize": 8.5,
            "font.family": ["DejaVu Sans"],
            "font.size": 9,
        }


LIGHT = Theme(
    *("", "#ffffff", "#1b1b1a", "#595854", "#e0dfda", "#a3a19a"),
    *("#2a78d6", "#d9601f", "#16916a", "#5b4bc4", "#b83280"),
)
DARK = Theme(
    *("-dark", "#1d1d1c", "#f2f1ec", "#bab8b0", "#3a3a37", "#85837c"),
    *("#4d97ef", "#ea7b42", "#2bb586", "#a198f0", "#ee7cb9"),
)
PAGE = Theme("", *(f"#fe01{at:02x}" for at in range(10)))  # no colours yet: `align.report.svg` looks for them


def panels(count: int, columns: int, *, width: float = 10.0, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in rows of `columns`, `height` inches a row."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns / max(columns, 2), height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def line(axes: Axes, series: Series, label: str, color: str, **style: Any) -> None:
    """One curve; a long one gets its running mean in front of a faint copy, few points get dots, two no line at all."""
    steps, values = series
    if not steps:
        return
    if len(steps) <= 12:
        style = {"marker": "o", "markersize": 4} | style
    if len(steps) <= 2:
        style["linestyle"] = "none"
    if len(steps) > LONG:
        axes.plot(steps, values, color=color, alpha=0.28, linewidth=0.9)
    axes.plot(steps, smooth(values), label=label, color=color, **style)


def smooth(values: list[float]) -> list[float]:
    """The running mean of a series of more than LONG values, over a fortieth of them on either side."""
    window = len(values) // 40 if len(values) > LONG else 0
    around = (values[max(0, at - window) : at + window + 1] for at in range(len(values)))
    return [sum(part) / len(part) for part in around]


def over(axes: Axes, what: str) -> None:
    """The axis of what is counted, in whole numbers."""
    axes.set_xlabel(what)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def legend(axes: Axes, **options: Any) -> None:
    """A legend where there is more than one thing to tell apart."""
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(**options)


@contextmanager
def drawing(settings: dict[str, Any]) -> Iterator[None]:
    """matplotlib with these settings, and silent about letters that its font lacks."""
    quiet = logging.getLogger("matplotlib.font_manager")
    level = quiet.level
    try:
        quiet.setLevel(logging.ERROR)
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            yield
    finally:
        quiet.setLevel(level)


def png(draw: Callable[[Theme], Figure | None], theme: Theme) -> bytes | None:
    """The figure that `draw` makes, None where it has nothing to show."""
    with drawing(theme.settings()):
        figure = draw(theme)
        if figure is None:
            return None
        buffer = io.BytesIO()
        figure.set_dpi(DPI)
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # savefig would draw twice
        return buffer.getvalue()
