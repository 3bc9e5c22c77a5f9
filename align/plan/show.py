"""A plan as text and as plain data for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from align.plan.cheaper import halves
from align.plan.parts import KINDS, PTX, Cost, Moment, StagePlan, flop, gib
from align.recipe import Recipe
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


def describe_cost(recipe: Recipe, plans: Sequence[StagePlan], ranks: int = 1) -> str:
    """What a step of every stage costs; ppo's iteration phase by phase, and what would halve it."""
    rows = [
        (plan.stage, plan.cost.step, plan.cost.lengths, sum(p.tokens for p in plan.cost.phases), flop(plan.cost.flops))
        for plan in plans
    ]
    parts = ["work of each stage at full length", table(("stage", "of one", "at", "tokens", "FLOP"), rows)]
    for plan in plans:
        if len(plan.cost.phases) > 1:
            parts += [f"{plan.stage}, by phase", _phases(plan.cost), _remarks(recipe, plan.cost, ranks)]
    return "\n\n".join(parts)


def _phases(cost: Cost) -> str:
    rows = [
        (one.name, one.tokens, one.head_rows, flop(one.flops), f"{one.flops / cost.flops:.0%}") for one in cost.phases
    ]
    return table(("phase", "tokens", "LM head", "FLOP", "share"), rows)


def _remarks(recipe: Recipe, cost: Cost, ranks: int) -> str:
    share, change = cost.ptx_share, halves(recipe, cost, ranks=ranks)
    found = []
    if cost.shared < cost.unshared:
        found.append(
            f"a pass over the replies computes {cost.shared:,} tokens, each prompt once, in place of {cost.unshared:,}"
        )
    if share:
        found.append(f"{PTX} is {share:.0%} of the iteration, {share / (1 - share):.2g} times everything else together")
    if change is not None:
        found.append(f"{change} would halve the iteration")
    return "\n".join(found)


def as_data(plans: Sequence[StagePlan]) -> list[dict[str, Any]]:
    """Everything, in bytes."""
    return [
        {
            "stage": plan.stage,
            "peak": plan.peak.bytes,
            "when": plan.peak.name,
            "assumption": plan.assumption,
            "disk": {"most": plan.disk.most, "left": plan.disk.left, **asdict(plan.disk)},
            "cost": {"flops": plan.cost.flops, **asdict(plan.cost)},
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
