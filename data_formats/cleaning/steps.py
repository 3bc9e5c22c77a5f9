"""What a cleaning step is, and what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from data_formats.records import Record


@dataclass(frozen=True, slots=True)
class Finding:
    """What a step found in a record.

    Attributes:
        action: "drop" leaves the record out, "repair" puts `repaired` in its place, "note" only counts it.
        reason: why, in a few words without the record's own text: it is what is counted.
        excerpt: the place that was found, for the table.
        repaired: the record after a repair.
    """

    action: Literal["drop", "repair", "note"]
    reason: str
    excerpt: str = ""
    repaired: Record | None = None


class CleaningStep(Protocol):
    """One rule. `check` is called once for every record that reaches the step, in order.

    Attributes:
        name: as in the recipe and the table.
        looks_for: one line for the table.

    A step that compares records with one another, and so wants to see all of them in one process, says so by an
    attribute `compares`, which is True.
    """

    name: str
    looks_for: str

    def check(self, record: Record) -> Finding | None:
        """What is to be done about the record; None: nothing."""
        ...


@runtime_checkable
class BatchedStep(CleaningStep, Protocol):
    """A step for which many records at once are cheaper than one after the other: a model's, an endpoint's.

    Attributes:
        batch_size: records it would like to have at once.
    """

    batch_size: int

    def check_all(self, records: Sequence[Record]) -> list[Finding | None]:
        """`check` of each record, in order."""
        ...
