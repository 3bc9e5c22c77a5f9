"""Where a merged comparison comes from: who said so, how many did not, and whose replies they were.

It travels with the pair as `Comparison.provenance`, through files, cleaning and splitting, and is read back here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Written:
    """How a reply came to be.

    Attributes:
        source, sampling, weights: as of `align.feedback.items.FeedbackReply`; of an edited reply those of the one that
            it was made of.
        edited_by: who rewrote it; empty for a reply as it was sampled.
    """

    source: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    edited_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Provenance:
    """Of one comparison.

    Attributes:
        item: id of the collected item.
        annotators: who prefers the chosen reply; of an edited one who rewrote it.
        against: who prefers the other; `tied`: who finds them equal; `neither`: who says that all replies are bad.
    """

    item: str
    annotators: tuple[str, ...]
    against: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    neither: tuple[str, ...] = ()
    chosen: Written = Written()
    rejected: Written = Written()

    @property
    def asked(self) -> int:
        """How many judged the pair."""
        return len(self.annotators) + len(self.against) + len(self.tied) + len(self.neither)

    def as_object(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


_PROVENANCE = TypeAdapter(Provenance)


def provenance_of(value: Mapping[str, Any] | None) -> Provenance | None:
    """The provenance that a comparison carries; None where it carries none, or another tool's."""
    try:
        return None if value is None else _PROVENANCE.validate_python(dict(value))
    except ValidationError:
        return None
