"""One plot as SVG inside a page: its lines are matplotlib's, its colours the page's, its words the page's own.

Title, unit and legend stand beside the drawing as text of the page, so that they wrap at any width and cover no curve.
Colours are CSS variables (`--blue`, …: `templates/figures.css`): one drawing for light and dark. Words in the drawing
are text and not outlines, in the page's font. The same panel always gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from align.report.style import PAGE, drawing
from align.runtime.table import columns

WIDTH, HEIGHT = 340.0, 190.0  # of a drawing, in its own units: about the pixels that it gets on a page
FONT = 11.0
LETTER = 0.62 * FONT  # the widest that a figure or letter is on average, whatever the font
NAMES = {"surface": "card", "grid": "rule"}  # colours of the theme that the page knows by other names
VARIABLES = {
    getattr(PAGE, one.name): f"var(--{NAMES.get(one.name, one.name)})" for one in fields(PAGE) if one.name != "suffix"
}
SETTINGS = PAGE.settings() | {
    **dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), FONT),
    "svg.fonttype": "none",
}
MARKS = {"-": "line", "None": "dots"}


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot that is yet to be drawn: `draw` puts it on axes; what it labels there becomes the legend."""

    title: str
    draw: Callable[[Axes], None]
    unit: str = ""
    height: float = HEIGHT


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of a legend; `mark` is `line`, `dashes`, `dots`, `area` or, where one sees through it, `band`."""

    label: str
    mark: str
    color: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn panel; `svg` is markup, everything else text."""

    title: str
    unit: str
    svg: str
    keys: list[Key] = field(default_factory=list)


def pictures(panels: Iterable[Panel], name: str) -> list[Picture]:
    """The panels of one figure, drawn; `name` tells its drawings from others on the page."""
    with drawing(SETTINGS):
        return [_picture(panel, f"{name}-{at}") for at, panel in enumerate(panels)]


def _picture(panel: Panel, name: str) -> Picture:
    figure = Figure(figsize=(WIDTH / 72, panel.height / 72))
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    panel.draw(axes)
    found = zip(*axes.get_legend_handles_labels(), strict=True)
    keys = [_key(handle, label) for handle, label in found]
    _fit(figure, axes, panel.height)
    buffer = io.StringIO()
    matplotlib.rcParams["svg.hashsalt"] = name  # what the ids are made of
    FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    told = ", ".join(filter(None, (panel.title, panel.unit, *(key.label for key in keys))))
    return Picture(panel.title, panel.unit, _for_page(buffer.getvalue(), told, panel.height), keys)


def _fit(figure: Figure, axes: Axes, height: float) -> None:
    """Give the axes all room but what their labels take. (matplotlib's own layouts would draw everything twice.)"""
    low, high = sorted(axes.get_ylim())
    ticks = axes.get_yticks()
    shown = zip(ticks, axes.yaxis.get_major_formatter().format_ticks(ticks), strict=True)
    longest = max((columns(text) for tick, text in shown if low <= tick <= high), default=0)
    left = min(8 + LETTER * longest, WIDTH / 2)
    bottom = 38 if axes.get_xlabel() else 22
    figure.subplots_adjust(left / WIDTH, bottom / height, 1 - 18 / WIDTH, 1 - 12 / height)


def _key(handle: Any, label: str) -> Key:
    while isinstance(handle, tuple | list):  # containers of bars and of what has error bars
        handle = handle[0]
    if isinstance(handle, Line2D):
        color, mark = handle.get_color(), MARKS.get(handle.get_linestyle(), "dashes")
    else:
        face = to_rgba_array(handle.get_facecolor())[0]
        color, mark = tuple(face), "area" if face[3] == 1 else "band"
    color = to_hex(color)
    return Key(label, mark, VARIABLES.get(color, color))


def _for_page(text: str, told: str, height: float) -> str:
    """What matplotlib wrote as a part of a page. Only tags are changed: `<` and `>` of labels are written otherwise."""
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)  # for all of the page
    text = re.sub(r"^.*?<svg[^>]*>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda found: _tag(found[0]), re.sub(r">\s+<", "><", text).strip())
    return f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(told)}">{text}'


def _tag(tag: str) -> str:
    if tag.startswith("<g "):
        tag = re.sub(r' id="[^"]*"', "", tag)  # names of matplotlib's parts, the same in every drawing
        if tag == "<g/>":
            return ""
    tag = tag.replace(" xlink:href=", " href=")
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag.replace(" font-family: 'DejaVu Sans';", ""))
    tag = re.sub(r"#[0-9a-f]{6}\b", lambda found: VARIABLES.get(found[0], found[0]), tag)
    tag = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), tag)
    return " ".join(tag.split())
