"""The page of a selection of rows: what was kept, what was dropped and why, ten of each side by side.

One file that needs nothing else and has no script.

Made of `summary.json` and `examples.jsonl` of the folder that a stage's `selection` or `align data select` leaves
(`align.curation.outcome`). Every text of a row goes through the template's escaping.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from align.report.style import PAGE
from align.report.svg import Panel, pictures
from align.report.template import template
from align.runtime.files import write_text
from align.runtime.json_files import Row, read_object, read_objects

SUMMARY, EXAMPLES, INDEX = "summary.json", "examples.jsonl", "index.html"
AGAIN = "remove the folder, and the same command makes it again"


def build_page(folder: Path, title: str) -> Path:
    """Write the page of the selection in `folder`; returns its path.

    Args:
        title: what was chosen for, or the file that was written.

    Raises:
        RunFileError: what lies there is damaged.
        StorageError: it cannot be written.
    """
    summary = read_object(folder / SUMMARY, AGAIN) or {}
    page = folder / INDEX
    write_text(page, render(summary, read_objects(folder / EXAMPLES, AGAIN), title))
    return page


def render(summary: Mapping[str, Any], examples: list[Row], title: str) -> str:
    """HTML of a selection."""
    figures, settings = summary["figures"], summary["made_with"]["selection"]
    lists = {name: [row for row in examples if row["list"] == name] for name in ("kept", "dropped", "duplicates")}
    return template("selection.html").render(
        name=title,
        figures=figures,
        settings=settings,
        facts=facts(figures, settings),
        fates={"kept": figures["kept"]} | figures["dropped"],
        scores=[name for name in ("quality", "difficulty") if f"mean_{name}" in figures],
        panels=pictures(_panels(summary["distributions"], settings), "selection"),
        groups=summary["groups"],
        pairs=list(zip_longest(lists["kept"], lists["dropped"])),
        duplicates=lists["duplicates"],
        told=told,
    )


def facts(figures: Row, settings: Row) -> list[str]:
    """One line below the name: how it was chosen."""
    keep = settings["keep"]
    found = [f"keep {keep:g}" if keep <= 1 else f"keep {keep:.0f} rows", f"spread {settings['spread']}"]
    found += [f"{name} by {settings[name]['kind']}" for name in ("quality", "difficulty") if settings[name]]
    found += ["by diversity alone"] if not (settings["quality"] or settings["difficulty"]) else []
    found += [f"embedded by {figures['embedded_by']}", f"{figures['clusters']} clusters by {settings['clustering']}"]
    found += [f"cosine up to {settings['max_cosine']:g}", f"seed {settings['seed']}"]
    return [*found, "drawn at random, as a control"] if settings["random"] else found


def told(row: Row, prefix: str = "") -> list[str]:
    """The figures of a row, in words."""
    found = [f"row {row[f'{prefix}row']}", f"cluster {row[f'{prefix}cluster']}"]
    for name in ("quality", "difficulty"):
        if row[f"{prefix}{name}"] is not None:
            found.append(f"{name} {row[f'{prefix}{name}']:.3g}")
    if row[f"{prefix}worth"] is not None:
        found.append(f"worth {row[f'{prefix}worth']:.2f}")
    if row[f"{prefix}nearest"] is not None:
        found.append(f"cosine {row[f'{prefix}cosine']:.3f} to row {row[f'{prefix}nearest']}")
    return found


def _panels(found: Row, settings: Row) -> Iterator[Panel]:
    for name in ("quality", "difficulty"):
        if name in found:
            yield Panel(name, partial(_histogram, one=found[name], what=name), "rows")
    if "cosine" in found:
        limit = settings["max_cosine"]
        draw = partial(_histogram, one=found["cosine"], what="cosine", limit=limit)
        yield Panel("nearest row before it", draw, "rows")
    if len(found["clusters"]["rows"]) > 1:
        yield Panel("clusters, the largest first", partial(_sizes, clusters=found["clusters"]), "rows")


def _histogram(axes: Axes, one: Row, what: str, limit: float | None = None) -> None:
    edges = one["edges"]
    for side, color in (("dropped", PAGE.orange), ("kept", PAGE.blue)):
        axes.stairs(one[side], edges, color=color, alpha=0.28, fill=True)
        axes.stairs(one[side], edges, color=color, linewidth=1.6)
        axes.plot([], [], color=color, label=side)
    if limit is not None:
        axes.axvline(limit, color=PAGE.muted, linestyle="--", linewidth=1, label="limit")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(what)


def _sizes(axes: Axes, clusters: Row) -> None:
    edges = [at + 0.5 for at in range(len(clusters["rows"]) + 1)]
    axes.stairs(clusters["rows"], edges, color=PAGE.gray, alpha=0.45, fill=True)
    axes.stairs(clusters["kept"], edges, color=PAGE.blue, linewidth=1.6)
    axes.plot([], [], color=PAGE.gray, label="rows")
    axes.plot([], [], color=PAGE.blue, label="kept")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("cluster")
