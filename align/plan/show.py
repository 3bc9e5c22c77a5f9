"""A plan as text and as plain data for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align.plan.parts import KINDS, Moment, StagePlan, gib
from align.runtime.table import table


def describe(plans: Sequence[StagePlan]) -> str:
    """A table of the stages by kind of memory, and one of each stage's peak by role where it has several models."""
    used = [kind for kind in KINDS if any(_sum(plan.peak, kind) for plan in plans)]
    rows = [
        (plan.stage, *(gib(_sum(plan.peak, kind)) for kind in used), gib(plan.peak.bytes), plan.peak.name)
        for plan in plans
    ]
    parts = ["memory of each stage's highest moment, GiB", table(("stage", *used, "peak", "when"), rows)]
    for plan in plans:
        names = list(dict.fromkeys(part.role for part in plan.peak.parts))
        if len(names) > 1:
            by_role = [
                (role, *(gib(_sum(plan.peak, kind, role)) for kind in used), gib(_sum(plan.peak, None, role)))
                for role in names
            ]
            parts += [f"{plan.stage}, by role", table(("role", *used, "all"), by_role)]
        if plan.assumption:
            parts.append(f"assumed: {plan.assumption}")
    return "\n\n".join(parts)


def as_data(plans: Sequence[StagePlan]) -> list[dict[str, Any]]:
    """Everything, in bytes."""
    return [
        {
            "stage": plan.stage,
            "peak": plan.peak.bytes,
            "when": plan.peak.name,
            "assumption": plan.assumption,
            "moments": [
                {
                    "name": moment.name,
                    "bytes": moment.bytes,
                    "parts": [{"kind": one.kind, "role": one.role, "bytes": one.bytes} for one in moment.parts],
                }
                for moment in plan.moments
            ],
        }
        for plan in plans
    ]


def _sum(moment: Moment, kind: str | None, role: str | None = None) -> int:
    wanted = (one for one in moment.parts if kind in (None, one.kind) and role in (None, one.role))
    return sum(one.bytes for one in wanted)
