"""A scaled recipe as text and as plain data for JSON."""

from __future__ import annotations

from typing import Any

from align.plan.parts import Moment, gib
from align.plan.propose import words
from align.runtime.table import table
from align.scale.choose import Scaled, StageScale, Unfit
from align.scale.growth import simulated
from align.scale.schedule import WAITING, Timeline


def describe(scaled: Scaled) -> str:
    """Layout, keys, stages, and of ppo memory by role and seconds by phase."""
    rows = [
        (
            stage.plan.stage,
            gib(stage.plan.peak.bytes),
            stage.plan.peak.name,
            stage.plan.cost.step,
            _seconds(stage.seconds),
            "" if stage.steps is None else f"{stage.steps:,}",
            "by the data" if stage.hours is None else f"{stage.hours:.1f}",
        )
        for stage in scaled.stages
    ]
    cluster = scaled.layout.cluster
    parts = [f"{cluster.words}: {scaled.layout.words}", f"efficiencies: {scaled.efficiency.words}"]
    head = ("stage", "GiB a card", "when", "step", "seconds", "steps", "hours")
    parts.append(table(head, rows))
    for stage in scaled.stages:
        if stage.plan.stage == "ppo":
            parts += [f"ppo, on one card, GiB\n\n{_roles(stage.plan.peak)}", f"ppo, by phase\n\n{_phases(stage)}"]
            parts += _remarks(scaled, stage)
    if scaled.changes:
        parts.append("nothing else fits; what is trained changes by: " + " ".join(scaled.changes))
    parts.append("keys:\n" + "\n".join(f"  {one}" for one in words(scaled.keys)))
    return "\n\n".join(parts)


def _roles(moment: Moment) -> str:
    kinds = list(dict.fromkeys(part.kind for part in moment.parts))
    roles = list(dict.fromkeys(part.role for part in moment.parts))
    rows = []
    for role in roles:
        sizes = [sum(one.bytes for one in moment.parts if (one.role, one.kind) == (role, kind)) for kind in kinds]
        rows.append((role, *(gib(size) if size else "" for size in sizes), gib(sum(sizes))))
    return table(("role", *kinds, "all"), rows)


def _phases(stage: StageScale) -> str:
    rows = [
        (one.part, one.name, _seconds(one.seconds), f"{one.seconds / stage.serial:.0%}", one.bound)
        for one in stage.phases
    ]
    return table(("logged as", "phase", "seconds", "share", "bound by"), rows)


def _remarks(scaled: Scaled, stage: StageScale) -> list[str]:
    found = [f"an iteration: {_seconds(stage.seconds)} s at full length ({stage.plan.cost.lengths})"]
    if stage.overlap:
        found.append(f"with rollout.overlap; in turn {_seconds(stage.serial)} s")
    unlike = _unlike(scaled, stage)
    found.append(
        "simulated with replies that end at random, on average at half of the longest: "
        f"{_seconds(unlike.seconds)} s, of which a rank waits {_seconds(unlike.phases[WAITING])} s for others"
    )
    return found


def _unlike(scaled: Scaled, stage: StageScale) -> Timeline:
    half = scaled.recipe.ppo.rollout.max_completion_length / 2
    return simulated(scaled.recipe, stage, scaled.layout, mean=half)


def _seconds(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"


def describe_unfit(unfit: Unfit, on: str) -> str:
    """What stands against every layout, and what holds most where least is lacking."""
    lines = [f"no layout on {on} fits into the {gib(unfit.limit)} GiB of a card that can be used"]
    lines += [f"  {sharding}: {reason}" for sharding, reason in unfit.refused.items()]
    if unfit.closest is not None:
        layout, plan = unfit.closest
        lines.append(f"closest: {layout.words}; {plan.stage} needs {gib(plan.peak.bytes)} GiB ({plan.peak.name})")
        largest = sorted(plan.peak.parts, key=lambda part: -part.bytes)[:3]
        lines.append("  most of it: " + ", ".join(f"{one.role} {one.kind} {gib(one.bytes)}" for one in largest))
        if any(one.role.startswith("reward") for one in largest):
            lines.append("  rewards are whole on every card: take a smaller one (pmp.init_from, ppo.reward_from)")
    return "\n".join(lines)


def as_data(scaled: Scaled) -> dict[str, Any]:
    """Everything, in bytes and seconds."""
    layout = scaled.layout
    return {
        "recipe": scaled.recipe.name,
        "layout": {
            "cards": layout.cluster.words,
            "ranks": layout.ranks,
            "sharding": layout.sharding,
            "servers": layout.servers,
            "tensor_parallel": layout.tensor_parallel,
            "same_cards": layout.shared,
            "idle": layout.idle,
        },
        "efficiencies": scaled.efficiency.as_data(),
        "keys": scaled.keys,
        "changes": list(scaled.changes),
        "stages": [
            {
                "stage": one.plan.stage,
                "peak": one.plan.peak.bytes,
                "when": one.plan.peak.name,
                "parts": [{"kind": part.kind, "role": part.role, "bytes": part.bytes} for part in one.plan.peak.parts],
                "step": one.plan.cost.step,
                "seconds": one.seconds,
                "steps": one.steps,
                "hours": one.hours,
                "phases": [
                    {"name": phase.name, "part": phase.part, "seconds": phase.seconds, "bound": phase.bound}
                    | {"needs": phase.needs}
                    for phase in one.phases
                ],
            }
            | ({"simulated": _simulated(scaled, one)} if one.plan.stage == "ppo" else {})
            for one in scaled.stages
        ],
    }


def _simulated(scaled: Scaled, stage: StageScale) -> dict[str, float]:
    unlike = _unlike(scaled, stage)
    return {"seconds": unlike.seconds, **unlike.phases}
