"""What became of what was read: rows in, records out, drops and repairs by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from data_formats.formats import SHOWN_KEYS


@dataclass(slots=True)
class ReadReport:
    """What became of a file.

    Attributes:
        rows: rows looked at (of a StackExchange dump: posts); `rows == used + sum(dropped.values())`.
        records: records made; a row can give several.
        dropped: rows left out, by reason.
        repaired: used rows that were repaired, by kind of repair.
        left_out: parts of used rows that were left out (pairs of equal score, replies without text), by reason.
        passed_over: keys that no reader understands ("messages[].foo"), each with the number of used rows that have it.
        used: rows that gave at least one record.
        drawn: records taken into a mixture by weight, None where there is none.
        source: what a recipe calls the file.
    """

    path: str
    format: str
    rows: int = 0
    records: int = 0
    dropped: dict[str, int] = field(default_factory=Counter)
    repaired: dict[str, int] = field(default_factory=Counter)
    left_out: dict[str, int] = field(default_factory=Counter)
    passed_over: dict[str, int] = field(default_factory=Counter)
    used: int = 0
    drawn: int | None = None
    source: str = ""

    def describe(self) -> str:
        """One line for a person."""
        line = f"{self.path} ({self.format}): {self.rows} rows, {self.records} kept"
        for word in ("dropped", "repaired", "left_out"):
            if counts := getattr(self, word):
                reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
                line += f"; {word.replace('_', ' ')}: {reasons}"
        if self.passed_over:
            line += f"; fields passed over: {self.describe_passed_over()}"
        return line if self.drawn is None else f"{line}; {self.drawn} taken into the mixture"

    def add(self, other: ReadReport) -> None:
        """Add the counts of another part of the same data."""
        for name in ("rows", "records", "used"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("dropped", "repaired", "left_out", "passed_over"):
            counts = getattr(self, name)
            for reason, count in getattr(other, name).items():
                counts[reason] = counts.get(reason, 0) + count

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}  # not `asdict`: it cannot copy a Counter
        return {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}

    def describe_passed_over(self) -> str:
        """The keys that were passed over and how many rows have each, the most frequent ones; "" without any."""
        counts = sorted(self.passed_over.items(), key=lambda one: (-one[1], one[0]))
        more = f", and {len(counts) - SHOWN_KEYS} more" if len(counts) > SHOWN_KEYS else ""
        return ", ".join(f"{key} {count}" for key, count in counts[:SHOWN_KEYS]) + more


@dataclass(frozen=True, slots=True)
class ReadResult:
    """The records of a file in its order, and the report."""

    records: list[Any]
    report: ReadReport
