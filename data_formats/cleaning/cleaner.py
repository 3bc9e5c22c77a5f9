"""Running the steps over records, one record after the other.

Nothing is kept but the report and what a step itself must remember (of duplicates, on disk), so memory does not grow
with the file. Steps run in the given order and a record that is dropped reaches no later step; put duplicate removal
last, or a record may be dropped as the repetition of one that a later step drops in its turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from data_formats.cleaning.report import CleaningReport, StepReport
from data_formats.cleaning.steps import CleaningStep
from data_formats.records import Record

R = TypeVar("R", bound=Record)


class Cleaner:
    """Steps and the report of what they did.

    `clean` may be called for one source after the other: the report adds up and duplicates are found across sources.

    Args:
        steps: in the order they run; each name once.

    Raises:
        ValueError: two steps have one name.
    """

    def __init__(self, steps: Sequence[CleaningStep]):
        names = [step.name for step in steps]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two cleaning steps are called {twice!r}; give each step once")
        self._steps = tuple(steps)
        self.report = CleaningReport([StepReport(step.name, step.looks_for) for step in steps])

    def clean(self, records: Iterable[R]) -> Iterator[R]:
        """The records that are left, repaired where a step repairs; read from `records` as they are asked for."""
        for record in records:
            self.report.rows += 1
            kept = self._checked(record)
            if kept is not None:
                self.report.records += 1
                yield kept

    def _checked(self, record: R) -> R | None:
        for step, counts in zip(self._steps, self.report.steps, strict=True):
            counts.seen += 1
            finding = step.check(record)
            if finding is None:
                continue
            counts.count(finding)
            if finding.action == "drop":
                return None
            if finding.action == "repair":
                record = finding.repaired  # type: ignore[assignment]
        return record
