"""The chain's last words: `<output_dir>/summary.json` and one table, stage by stage."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from align.recipe import Recipe
from align.recipe.lineage import stage_dir
from align.recipe.registry import STAGES
from align.report.headline import cell
from align.report.headline import headline as headline_rows
from align.stages.common import Summary, read_summary, write_summary
from align.tinyworld.gold import GOLD_RANGE

Line = tuple[str, str, str]
WIDTH = 80


def stage_summary(recipe: Recipe, stage: str) -> Summary | None:
    """What the stage left in its `summary.json`, None when it has not finished. Raises RunFileError."""
    return read_summary(stage_dir(recipe, stage))


def write_chain_summary(recipe: Recipe) -> Summary:
    """Gather the stages' summaries into `<output_dir>/summary.json`, seconds in a group of their own."""
    done = {stage: found for stage in recipe.stages if (found := stage_summary(recipe, stage)) is not None}
    summary: Summary = {"name": recipe.name, "seed": recipe.seed, "output_dir": recipe.output_dir, **done}
    summary["peak_memory_gib"] = max((found.get("peak_memory_gib") or 0.0 for found in done.values()), default=0.0)
    summary["seconds"] = {stage: found["seconds"] for stage, found in done.items() if "seconds" in found}
    if recipe.tinyworld is not None:
        summary["gold_range"] = list(GOLD_RANGE)
    return write_summary(Path(recipe.output_dir), summary)


def headline(stage: str, summary: Summary) -> Iterator[Line]:
    """(what was measured, before, after) of one stage, as they are shown."""
    for what, before, after in headline_rows(stage, summary):
        yield what, cell(before), cell(after)


def _took(seconds: float | None, resumed_from: int | None) -> str:
    """Seconds of the session that finished the stage; where another had begun it, from which step they count."""
    if seconds is None:
        return ""
    return f"{seconds:.0f}, from step {resumed_from}" if resumed_from else f"{seconds:.0f}"


def _rows(recipe: Recipe, summary: Summary) -> Iterator[tuple[tuple[str, ...], bool]]:
    """The cells of every row, and whether it is its stage's last one."""
    for stage in recipe.stages:
        if stage not in summary:
            continue
        took = _took(summary["seconds"].get(stage), summary[stage].get("resumed_from"))
        lines = list(headline(stage, summary[stage])) or [("finished", "", "")]
        for index, line in enumerate(lines):
            yield (stage, *line, took) if index == 0 else ("", *line, ""), index == len(lines) - 1


def talk(recipe: Recipe, summary: Summary) -> str:
    """What a user types to talk to the chain's last policy, beside the SFT model where it is another; empty without
    one."""
    policies = [stage for stage in recipe.stages if stage in summary and STAGES[stage].makes == "policy"]
    if not policies:
        return ""
    against = ["--against", "sft"] if "sft" in policies[:-1] else []
    return shlex.join(["align", "chat", str(recipe.output_dir), *against])


def print_table(recipe: Recipe, summary: Summary) -> None:
    """One table (stage, what it measured, before -> after, seconds), and where everything lies."""
    from rich.box import HORIZONTALS
    from rich.table import Table

    from align.runtime.console import Console

    rows = list(_rows(recipe, summary))
    title = f"{recipe.name}, seed {recipe.seed}"
    table = Table(title=title, box=HORIZONTALS, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("stage")
    table.add_column("measured")
    for at, name, width in ((2, "before", 9), (3, "after", 16), (4, "seconds", 9)):
        words = (len(word) for row, _ in rows for word in row[at].split())
        table.add_column(name, justify="right", width=max(width, *words, 0))
    for row, last in rows:
        table.add_row(*(cell.replace(" [", "\n[") for cell in row), end_section=last)  # an interval below its figure
    console = Console(width=WIDTH)
    console.print(table)
    if summary.get("peak_memory_gib"):
        console.print(f"{sum(summary['seconds'].values()):.0f} s in all, {summary['peak_memory_gib']} GiB at most.")
    contents = "report/index.html, summary.json, a folder per stage"
    console.print(f"Everything is in {recipe.output_dir}/ ({contents}).", soft_wrap=True)
    if command := talk(recipe, summary):
        console.print(f"Talk to it: {command}", soft_wrap=True)
