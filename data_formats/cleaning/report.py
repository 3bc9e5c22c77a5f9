"""What cleaning found: counts by step and reason, with a first example of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from align.runtime.terminal import shortened
from data_formats.cleaning.steps import Finding

EXCERPT = 60  # characters of an example
HEADER = ("step", "looks for", "rows seen", "dropped", "repaired", "noted", "example")


def shown(text: str) -> str:
    """A text on one line, cut short, with what cannot be printed written out."""
    text = text[: 4 * EXCERPT]
    line = " ".join("".join(c if c.isprintable() or c.isspace() else f"\\u{ord(c):04x}" for c in text).split())
    return shortened(line, EXCERPT, "…")


@dataclass(slots=True)
class StepReport:
    """One step's counts.

    Attributes:
        seen: records that reached the step.
        dropped, repaired, noted: records, by reason.
        examples: for each reason the excerpt of the first record.
    """

    name: str
    looks_for: str
    seen: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def count(self, finding: Finding) -> None:
        """Count a finding."""
        counts = {"drop": self.dropped, "repair": self.repaired, "note": self.noted}[finding.action]
        counts[finding.reason] += 1
        if finding.reason not in self.examples:
            self.examples[finding.reason] = shown(finding.excerpt)

    def add(self, other: StepReport) -> None:
        """Add the counts of the same step over later records."""
        self.seen += other.seen
        for name in ("dropped", "repaired", "noted"):
            getattr(self, name).update(getattr(other, name))
        for reason, example in other.examples.items():
            self.examples.setdefault(reason, example)


@dataclass(slots=True)
class CleaningReport:
    """All steps in their order; `rows == records + dropped` once the records have been taken."""

    steps: list[StepReport]
    rows: int = 0
    records: int = 0

    @property
    def dropped(self) -> int:
        """Records left out, by whatever step."""
        return sum(step.dropped.total() for step in self.steps)

    def add(self, other: CleaningReport) -> None:
        """Add what the same steps did to later records."""
        self.rows, self.records = self.rows + other.rows, self.records + other.records
        for own, more in zip(self.steps, other.steps, strict=True):
            own.add(more)

    def as_rows(self) -> list[tuple[str, str, int, int, int, int, str]]:
        """The table under `HEADER`: a line for each step and, below it, one for each of its reasons."""
        rows = []
        for step in self.steps:
            totals = (step.dropped.total(), step.repaired.total(), step.noted.total())
            rows.append((step.name, step.looks_for, step.seen, *totals, ""))
            for reason, example in step.examples.items():
                counts = (step.dropped[reason], step.repaired[reason], step.noted[reason])
                rows.append(("", f"- {reason}", step.seen, *counts, example))
        return rows

    def describe(self) -> str:
        """One line for a person: what went in, what is left, and every reason that was met."""
        line = f"cleaning: {self.rows} rows, {self.records} kept"
        for word in ("dropped", "repaired", "noted"):
            met = [(f"{step.name}: {r}", n) for step in self.steps for r, n in sorted(getattr(step, word).items())]
            if met:
                line += f"; {word}: " + ", ".join(f"{reason} {count}" for reason, count in met)
        return line

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        steps = [
            {
                "step": step.name,
                "looks_for": step.looks_for,
                "rows_seen": step.seen,
                "dropped": dict(step.dropped),
                "repaired": dict(step.repaired),
                "noted": dict(step.noted),
                "examples": dict(step.examples),
            }
            for step in self.steps
        ]
        return {"rows": self.rows, "records": self.records, "dropped": self.dropped, "steps": steps}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> CleaningReport:
        """The report of which this is `to_dict`."""
        steps = [
            StepReport(
                one["step"],
                one["looks_for"],
                one["rows_seen"],
                *(Counter(one[name]) for name in ("dropped", "repaired", "noted")),
                dict(one["examples"]),
            )
            for one in told["steps"]
        ]
        return cls(steps, told["rows"], told["records"])
