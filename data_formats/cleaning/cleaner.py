"""Running the steps over records, one record after the other, or a batch where a step asks a model.

Nothing is kept but the report, a batch, and what a step itself must remember (of duplicates, on disk), so memory does
not grow with the file. Steps run in the given order and a record that is dropped reaches no later step; put duplicate
removal last, or a record may be dropped as the repetition of one that a later step drops in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from data_formats.cleaning.report import CleaningReport, StepReport
from data_formats.cleaning.steps import BatchedStep, CleaningStep, Finding
from data_formats.records import Record

R = TypeVar("R", bound=Record)
Check = Callable[[Sequence[Record]], Iterable[Finding | None]]


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
        self._checks = tuple(step.check_all if isinstance(step, BatchedStep) else _each(step) for step in steps)
        self._at_once = max((step.batch_size for step in steps if isinstance(step, BatchedStep)), default=1)
        self.report = CleaningReport([StepReport(step.name, step.looks_for) for step in steps])

    def clean(self, records: Iterable[R]) -> Iterator[R]:
        """The records that are left, repaired where a step repairs; read from `records` as they are asked for, one by
        one, or as many at once as a `BatchedStep` among the steps wants."""
        source = iter(records)
        while batch := list(islice(source, self._at_once)):
            self.report.rows += len(batch)
            for check, counts in zip(self._checks, self.report.steps, strict=True):
                batch = _passed(check, counts, batch)
            self.report.records += len(batch)
            yield from batch


def _each(step: CleaningStep) -> Check:
    return lambda records: map(step.check, records)


def _passed(check: Check, counts: StepReport, records: list[R]) -> list[R]:
    """The records that a step leaves, in their order."""
    counts.seen += len(records)
    left: list[R] = []
    for record, finding in zip(records, check(records), strict=True):
        if finding is not None:
            counts.count(finding)
        if finding is None or finding.action == "note":
            left.append(record)
        elif finding.action == "repair":
            left.append(finding.repaired)  # type: ignore[arg-type]
    return left
