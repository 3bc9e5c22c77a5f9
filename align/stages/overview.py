"""The chain's last words: `<output_dir>/summary.json` and one table, stage by stage."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.recipe import Recipe
from align.recipe.lineage import stage_dir
from align.stages import hooks
from align.stages.common import Summary, write_summary

Line = tuple[str, str, str]
BASELINES = {"length_baseline": "by length alone", "majority_baseline": "by the side that won more often"}
WIDTH = 110  # of the table where there is no terminal to ask


def stage_summary(recipe: Recipe, stage: str) -> Summary | None:
    """What the stage left in its `summary.json`, None when it has not finished."""
    file = stage_dir(recipe, stage) / "summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def write_chain_summary(recipe: Recipe) -> Summary:
    """Gather the stages' summaries into `<output_dir>/summary.json`, seconds in a group of their own."""
    done = {stage: found for stage in recipe.stages if (found := stage_summary(recipe, stage)) is not None}
    summary: Summary = {"name": recipe.name, "seed": recipe.seed, "output_dir": recipe.output_dir, **done}
    summary["peak_memory_gib"] = max((found.get("peak_memory_gib") or 0.0 for found in done.values()), default=0.0)
    summary["seconds"] = {stage: found["seconds"] for stage, found in done.items() if "seconds" in found}
    for name in hooks.CHAIN_HOOKS:
        summary |= hooks.resolve(name)(recipe, summary)
    return write_summary(Path(recipe.output_dir), summary)


def headline(stage: str, summary: Summary) -> Iterator[Line]:
    """(what was measured, before, after) of one stage; the `headline` rows of its hooks come last."""
    yield from _measured(stage, summary)
    for row in summary.get("headline", []):
        what, before, after = (_text(cell) for cell in row)
        yield what, before, after


def _measured(stage: str, summary: Summary) -> Iterator[Line]:
    if stage == "base":
        entropy = summary.get("unigram_entropy")
        before = (
            f"{_text(entropy)} (unigram entropy)" if entropy is not None else _text(summary.get("heldout_loss_before"))
        )
        yield "held-out loss, nats a token", before, _text(summary.get("heldout_loss"))
    elif stage == "sft":
        yield (
            "held-out loss, nats a token",
            _text(summary.get("heldout_loss_before")),
            _text(summary.get("heldout_loss")),
        )
        if "best_step" in summary:
            yield "  the best, of step", "", f"{summary['best_step']} of {summary['steps']}"
        if "end_rate" in summary:
            yield "replies that end by themselves", "", percent(summary["end_rate"])
    elif stage in ("pmp", "rm") and summary.get("accuracy") is not None:
        before = summary.get("accuracy_before")
        interval = f" [{percent(summary['accuracy_low'])}, {percent(summary['accuracy_high'])}]"
        start = percent(before) if before is not None else "50.0 % (chance)"
        yield f"accuracy on {summary['pairs']} held-out pairs", start, percent(summary["accuracy"]) + interval
        for tag, part in summary.get("by_tag", {}).items():
            yield f"  those tagged {tag} ({part['pairs']})", "", percent(part["accuracy"])
        for name, what in BASELINES.items():
            if name in summary:
                yield f"  {what}", "", percent(summary[name])


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _took(seconds: float | None, resumed_from: int | None) -> str:
    """Seconds of the session that finished the stage; where another had begun it, from which step they count."""
    if seconds is None:
        return ""
    return f"{seconds:.0f}, from step {resumed_from}" if resumed_from else f"{seconds:.0f}"


def print_table(recipe: Recipe, summary: Summary) -> None:
    """One table (stage, what it measured, before -> after, seconds), and where everything lies."""
    from rich.table import Table

    from align.runtime.console import Console

    table = Table(title=f"{recipe.name}, seed {recipe.seed}")
    for name, side in (
        ("stage", "left"),
        ("measured", "left"),
        ("before", "right"),
        ("after", "right"),
        ("seconds", "right"),
    ):
        table.add_column(name, justify=side)
    for stage in recipe.stages:
        if stage not in summary:
            continue
        seconds = summary["seconds"].get(stage)
        lines = list(headline(stage, summary[stage])) or [("finished", "", "")]
        for index, line in enumerate(lines):
            first = index == 0
            took = _took(seconds, summary[stage].get("resumed_from")) if first else ""
            table.add_row(stage if first else "", *line, took, end_section=index == len(lines) - 1)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(table)
    if summary.get("peak_memory_gib"):
        console.print(f"{sum(summary['seconds'].values()):.0f} s in all, {summary['peak_memory_gib']} GiB at most.")
    contents = "report/index.html, summary.json, a folder per stage"
    console.print(f"Everything is in {recipe.output_dir}/ ({contents}).", soft_wrap=True)
