"""What a stage drew of each part of its mixture, as its summary tells: for the page, and in words for model cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from align.evaluation.table import percent
from align.runs.run_files import Row, Run, clean, number

HEADER = ("part", "rows", "drawn", "times seen", "share")


@dataclass(frozen=True, slots=True)
class MixtureTable:
    """The mixture of a stage: `by` what, the header, and a line of cells a part; phases have columns of their own."""

    stage: str
    by: str
    header: list[str]
    lines: list[list[str]]


def mixture_tables(run: Run) -> list[MixtureTable]:
    """A table for every stage whose summary has a mixture that can be read."""
    return [table for name in run.expected if (table := mixture_table(name, run.stages[name].summary)) is not None]


def mixture_table(stage: str, summary: Row) -> MixtureTable | None:
    """The table of a summary's `mixture`; None without any."""
    told = summary.get("mixture")
    parts = dict(_parts(told))
    if not parts:
        return None
    phases = told["phases"] if isinstance(told.get("phases"), list) else []
    phases = [one for one in phases if isinstance(one, dict) and isinstance(one.get("drawn"), dict)]
    lines = []
    for name, part in parts.items():
        cells = [f"{part['rows']:,.0f}", f"{part['drawn']:,.0f}", f"{part['epochs']:.3g}", percent(part["share"])]
        lines.append([clean(name, 200), *cells, *(_in_phase(phase, name) for phase in phases)])
    return MixtureTable(stage, clean(told.get("by")), [*HEADER, *map(_title, phases)], lines)


def in_words(summary: Row) -> list[str]:
    """`a.jsonl: 40 of 20 (2 times, 33.3 %)`, for each part."""
    return [
        f"{clean(name, 200)}: {part['drawn']:,.0f} of {part['rows']:,.0f} ({part['epochs']:.3g} times, "
        f"{percent(part['share'])})"
        for name, part in _parts(summary.get("mixture"))
    ]


def _parts(told: Any) -> Iterator[tuple[str, dict[str, float]]]:
    parts = told.get("parts") if isinstance(told, dict) else None
    for name, part in (parts if isinstance(parts, dict) else {}).items():
        known = part if isinstance(part, dict) else {}
        found = {key: number(known.get(key)) for key in ("rows", "drawn", "epochs", "share")}
        if None not in found.values():
            yield name, found


def _title(phase: Row) -> str:
    steps = phase.get("steps")
    first, last = (number(step) for step in steps) if isinstance(steps, list) and len(steps) == 2 else (None, None)
    name = clean(phase.get("name"), 60)
    return name if first is None or last is None else f"{name}, steps {first:.0f} to {last:.0f}"


def _in_phase(phase: Row, name: str) -> str:
    drawn = {part: count for part, one in phase["drawn"].items() if (count := number(one)) is not None}
    total = sum(drawn.values())
    return percent(drawn[name] / total) if name in drawn and total else ""
