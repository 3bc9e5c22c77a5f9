"""What the rounds of a run came to, in words: of a terminal's table and of the page's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from align.evaluation.table import percent
from align.runs.run_files import Row, clean, number

HEADER = (
    *("round", "comparisons", "reward model, held-out pairs", "its policy's own replies", "against the round before"),
    *("against the start", "gold score", "right"),
)


@dataclass(frozen=True, slots=True)
class RoundLine:
    """A round's cells under `HEADER`, where its own page lies beside the run's ("": nowhere), and what to beware of."""

    cells: list[str]
    page: str
    due: list[str]


@dataclass(frozen=True, slots=True)
class RoundsTable:
    """The columns that any round has something in, and a line a round."""

    header: list[str]
    lines: list[RoundLine]


def rounds_table(rounds: Any) -> RoundsTable | None:
    """The table of a summary's `rounds`, as far as they are what they should be; None without any."""
    rows = [row for row in rounds if isinstance(row, dict)] if isinstance(rounds, list) else []
    lines = [RoundLine(_cells(row), _page(row), _due(row)) for row in rows if number(row.get("round")) is not None]
    filled = [at for at in range(len(HEADER)) if any(line.cells[at] for line in lines)]
    shown = [RoundLine([line.cells[at] for at in filled], line.page, line.due) for line in lines]
    return RoundsTable([HEADER[at] for at in filled], shown) if lines else None


def _page(row: Row) -> str:
    return f"../round-{row['round']}/report/index.html" if row["round"] else ""


def _due(row: Row) -> list[str]:
    found = ((who, _object(part).get("due")) for who, part in _object(row.get("rm_on_own")).items())
    return [f"{clean(told, 400)} (by {clean(who, 60)})" for who, told in found if told]


def _cells(row: Row) -> list[str]:
    wins, own = (_object(_first(_object(row.get(name)))) for name in ("wins", "rm_on_own"))
    counts = [number(row.get(name)) for name in ("comparisons", "all_comparisons")]
    sides = [_accuracy(own.get(side)) for side in ("before", "after")]
    gold, right = number(row.get("gold")), number(row.get("correct"))
    return [
        str(row["round"] or "start"),
        "" if None in counts else f"{counts[0]:.0f} of {counts[1]:.0f}",
        _accuracy(row.get("rm")),
        " -> ".join(side or "?" for side in sides) if any(sides) else "",
        _share(wins.get("before")),
        _share(wins.get("start")),
        "" if gold is None else f"{gold:.3f}",
        "" if right is None else percent(right),
    ]


def _object(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _first(parts: Row) -> Any:
    """Of several judges the first, who is the rounds' own."""
    return next(iter(parts.values()), None)


def _accuracy(part: Any) -> str:
    accuracy = number(_object(part).get("accuracy"))
    return "" if accuracy is None else percent(accuracy)


def _share(part: Any) -> str:
    share, *ends = (number(_object(part).get(name)) for name in ("win_share", "low", "high"))
    if share is None:
        return ""
    return percent(share) if None in ends else f"{percent(share)} ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"
