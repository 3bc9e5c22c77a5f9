"""The layout that takes the least time among those that fit, with what it holds and how long it takes.

Every way to share the cards out is planned; of each the largest micro-batches that fit are taken (they change no
gradient, and fewer of them gather sharded models less often), and activation checkpointing only where nothing fits
without. Where no layout fits, the plan's own proposals are tried under DDP (`align.plan.propose`): these may change
what is learnt, and are listed as changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from align.plan import card
from align.plan.engine import token_bytes
from align.plan.models import Model
from align.plan.parts import GIB, StagePlan, parts
from align.plan.predict import ppo_models, supervised_model
from align.plan.propose import changed, propose
from align.recipe import STAGES, Recipe, batch_plan
from align.recipe.batch import batch_problem
from align.runtime.resolve import resolve
from align.scale.cards import Cluster, ScaleError
from align.scale.decoding import Decoding, decoding_of
from align.scale.efficiency import Efficiency
from align.scale.layout import Layout, layouts, refusal
from align.scale.memory import on_a_card
from align.scale.phases import Machine, PhaseTime, ppo_phases, step_phases

CHECKPOINTED = {"model.gradient_checkpointing": True}
MOST_ROWS = 64  # of a micro-batch, a power of two
SERVED = 2  # bytes of a weight of a server
MARGIN, NEVER_STARTED = 1.05, 1.25  # by which what is less simple must be faster; servers on the trainers' cards


@dataclass(frozen=True, slots=True)
class StageScale:
    """A stage under a layout.

    Attributes:
        plan: memory of one card.
        phases: of a step (of ppo: an iteration).
        steps: how many there are; None where only the data tell.
        decoding: ppo's engine. room: bytes for keys and values on each of its cards.
    """

    plan: StagePlan
    phases: tuple[PhaseTime, ...]
    steps: int | None
    overlap: bool = False
    decoding: Decoding | None = None
    room: float = 0.0

    @property
    def seconds(self) -> float:
        """Of a step; with overlap an iteration's sampling runs beside the update of the one before."""
        if not self.overlap:
            return self.serial
        apart = self.by_part()
        learnt = sum(apart.get(part, 0.0) for part in ("score", "experience", "update"))
        return self.serial - min(apart.get("rollout", 0.0), learnt)

    @property
    def serial(self) -> float:
        """Of all phases in turn."""
        return sum(one.seconds for one in self.phases)

    def by_part(self, *, without: str = "") -> dict[str, float]:
        """Seconds of the logged phases that its phases belong to, one of these by its name left out."""
        found = dict.fromkeys((one.part for one in self.phases), 0.0)
        for one in self.phases:
            found[one.part] += one.seconds if one.name != without else 0.0
        return found

    @property
    def hours(self) -> float | None:
        """Of all steps, None where only the data tell how many."""
        return None if self.steps is None else self.steps * self.seconds / 3600


Way = tuple[dict[str, Any], StageScale]  # keys, and what comes of them


@dataclass(frozen=True, slots=True)
class Scaled:
    """A recipe on cards.

    Attributes:
        recipe: with `keys` set.
        keys: what of it the layout and its micro-batches set, by dotted key.
        changes: those of them that change what is computed, as `key=value`.
    """

    recipe: Recipe
    layout: Layout
    efficiency: Efficiency
    keys: dict[str, Any]
    changes: tuple[str, ...]
    stages: tuple[StageScale, ...]

    @property
    def seconds(self) -> float:
        """By which layouts are compared: of the stage that samples, or of all steps."""
        return sum(one.seconds for one in self.stages if one.plan.stage == "ppo") or sum(s.seconds for s in self.stages)


@dataclass(frozen=True, slots=True)
class Unfit:
    """Nothing fits.

    Attributes:
        closest: the layout that goes through most stages, and of them lacks the least in the next one.
        refused: why layouts were not even planned, by what they are.
    """

    limit: int
    closest: tuple[Layout, StagePlan] | None
    refused: dict[str, str]


def scale(recipe: Recipe, cluster: Cluster, efficiency: Efficiency) -> Scaled | Unfit:
    """The fastest layout that fits, or what stands against all.

    Raises:
        PlanError: a model's shape is not known.
        ScaleError: the batches can be cut for no number of ranks.
    """
    limit = card.usable(cluster.card.memory)
    policy = None if recipe.ppo is None else ppo_models(recipe).policy.body.shape
    tried, refused, closest = list(layouts(recipe, cluster, policy)), {}, []
    for more in ({}, CHECKPOINTED):
        found, known = [], {}
        for layout in _splittable(recipe, tried):
            base = changed(recipe, layout.keys(recipe) | more, layout.ranks)
            if base is None:
                refused["servers" if layout.servers else layout.sharding] = "the recipe's own rules forbid the engine"
                continue
            if reason := refusal(base, layout):
                refused[layout.sharding] = reason
                continue
            fitted = _fitted(base, layout, efficiency, limit, known)
            if isinstance(fitted, Scaled):
                found.append(replace(fitted, keys=layout.keys(recipe) | more | fitted.keys))
            else:
                closest.append((layout, *fitted))
        if found:
            return min(found, key=_weighed)
        if recipe.model.gradient_checkpointing:
            break
    if proposed := _proposed(recipe, cluster, efficiency, limit):
        return proposed
    best = min(closest, key=lambda one: (-one[1], one[2].peak.bytes), default=None)
    return Unfit(limit, best and (best[0], best[2]), refused)


def _weighed(found: Scaled) -> float:
    """Seconds, more of them for what is less simple than DDP with an engine in every rank."""
    layout = found.layout
    engine = NEVER_STARTED if layout.shared else MARGIN if layout.servers else 1.0
    return found.seconds * engine * (MARGIN if layout.sharded else 1.0)


def _splittable(recipe: Recipe, tried: list[Layout]) -> list[Layout]:
    """Those whose ranks can cut every batch; without servers the most ranks alone.

    Raises:
        ScaleError: there is none.
    """
    found: dict[tuple[Any, ...], Layout] = {}
    for layout in tried:
        if not any(batch_problem(recipe, stage, layout.ranks) for stage in recipe.stages):
            kind = layout.sharding if layout.ranks > 1 else ""
            found.setdefault((layout.servers, layout.tensor_parallel, layout.shared, kind), layout)
    if not found:
        problem = next(filter(None, (batch_problem(recipe, stage, tried[0].ranks) for stage in recipe.stages)))
        raise ScaleError(f"no number of ranks can share the batches: {problem}")
    return list(found.values())


def _fitted(
    recipe: Recipe, layout: Layout, efficiency: Efficiency, limit: int, known: dict[Any, Way | StagePlan]
) -> Scaled | tuple[int, StagePlan]:
    """Every stage with its largest micro-batches that fit; or how many fit, and the plan of one that fits with none.

    Args:
        known: what was found of stages that do not sample, which engines do not touch; it grows.
    """
    keys: dict[str, Any] = {}
    stages = []
    for stage in recipe.stages:
        key = (stage, layout.ranks, layout.sharding)
        if key not in known or stage == "ppo":
            known[key] = _fitted_stage(recipe, stage, layout, efficiency, limit)
        found = known[key]
        if isinstance(found, StagePlan):
            return len(stages), found
        keys |= found[0]
        stages.append(found[1])
    whole = changed(recipe, keys, layout.ranks) or recipe  # every step of them was valid
    return Scaled(whole, layout, efficiency, keys, (), tuple(stages))


def _fitted_stage(recipe: Recipe, stage: str, layout: Layout, efficiency: Efficiency, limit: int) -> Way | StagePlan:
    """The first way that fits, or the plan of the one that lacks least."""
    plans = []
    for keys, found in _ways(recipe, stage, layout, efficiency, limit):
        if _fits(found, layout, limit):
            return keys, found
        plans.append(found.plan)
    return min(plans, key=lambda plan: plan.peak.bytes)


def _ways(recipe: Recipe, stage: str, layout: Layout, efficiency: Efficiency, limit: int) -> Iterator[Way]:
    """(keys, what comes of them): micro-batches from the largest on, those between only where the smallest fits; then
    the same with smaller looks at held-out data, and without them."""

    def tried(step: dict[str, Any]) -> Iterator[Way]:
        wanted = changed(recipe, step, layout.ranks)
        if wanted is not None:
            wanted, cache = _with_room(wanted, stage, layout, limit)
            yield step | cache, stage_scale(wanted, stage, layout, efficiency)

    for looks in _looks(recipe, stage):
        steps = [step | looks for step in _micro_batches(recipe, stage, layout.ranks)]
        yield from tried(steps[0])  # where gradients of several micro-batches are kept whole, one alone may be less
        for smallest in tried(steps[-1]):
            if _fits(smallest[1], layout, limit):
                yield from (found for step in steps[1:] for found in tried(step))
            yield smallest


def _fits(found: StageScale, layout: Layout, limit: int) -> bool:
    """Whether the card holds it, and its engine at least one reply."""
    if found.decoding is not None and layout.cluster.card.name != "CPU":
        rollout = found.decoding.token * found.decoding.longest / layout.tensor_parallel
        if found.room < rollout:
            return False
    return found.plan.peak.bytes <= limit


def _looks(recipe: Recipe, stage: str) -> Iterator[dict[str, Any]]:
    section = getattr(recipe, stage)
    yield {}
    if stage == "ppo":
        if section.eval_data:
            yield {"ppo.eval_data": []}
        return
    smaller = {f"{stage}.eval_batch_size": min(8, section.eval_batch_size)}
    yield smaller
    if getattr(section, "eval_num_replies", 0):
        yield smaller | {f"{stage}.eval_num_replies": 0}


def _micro_batches(recipe: Recipe, stage: str, ranks: int) -> Iterator[dict[str, Any]]:
    """Sizes of a stage's micro-batches, largest first; of ppo, those of pretraining rows by the same tokens."""
    plan = batch_plan(recipe, stage, ranks)
    share, size = plan.rank_batch_size, MOST_ROWS
    while size:
        if size <= share and (stage == "ppo" or share % size == 0):
            step: dict[str, Any] = {f"{stage}.micro_batch_size": size}
            if stage == "ppo":
                if recipe.ppo.micro_batch_tokens is not None:
                    step["ppo.micro_batch_tokens"] = None
                if recipe.ppo.uses_ptx:
                    rows = int(size * recipe.ppo.rollout.max_length / recipe.ppo.ptx_max_length)
                    step["ppo.ptx_micro_batch_size"] = max(1, min(rows, plan.ptx_batch_size // ranks))
            yield step
        size //= 2


def stage_scale(recipe: Recipe, stage: str, layout: Layout, efficiency: Efficiency) -> StageScale:
    """A stage under a layout, whether it fits or not."""
    device = "cpu" if layout.cluster.card.name == "CPU" else "gpu"
    plan: StagePlan = resolve(STAGES[stage].plan)(recipe, stage, ranks=layout.ranks, device=device)
    machine, section = Machine(layout, efficiency), getattr(recipe, stage)
    if stage == "ppo":
        models = ppo_models(recipe)
        if layout.sharded:
            critic = {} if models.critic is None else {"critic": models.critic}
            spread = {"policy": models.policy, "reference": models.reference} | critic
            plan = on_a_card(plan, spread, layout.ranks, evaluates=bool(section.eval_data))
        plan, room = _with_engine(recipe, plan, models.policy, layout)
        decoding = decoding_of(recipe, models.policy, layout, efficiency, room)
        phases = ppo_phases(recipe, plan.cost, models, machine, decoding)
        return StageScale(plan, phases, section.num_iterations, layout.samples_ahead(recipe), decoding, room)
    model = supervised_model(recipe, stage)
    if layout.sharded:
        keeps = batch_plan(recipe, stage, layout.ranks).accumulation > 1
        plan = on_a_card(plan, {"model": model}, layout.ranks, keeps=keeps)
    return StageScale(plan, step_phases(plan.cost, model, machine), section.max_steps)


def _with_engine(recipe: Recipe, plan: StagePlan, policy: Model, layout: Layout) -> tuple[StagePlan, float]:
    """ppo's plan, with a server where one is on the card too, and the bytes for keys and values on a card that samples:
    what is left of it, at most what all replies fill."""
    held = max((one.bytes for moment in plan.moments for one in moment.parts if one.kind == "kv cache"), default=0)
    if not layout.servers:
        return plan, held
    limit = card.usable(layout.cluster.card.memory)
    shape, parallel = policy.body.shape, layout.tensor_parallel
    weights = SERVED * policy.body.count.whole / parallel
    if not layout.shared:
        return plan, limit - weights
    rows = -(-batch_plan(recipe, "ppo", layout.ranks).responses // layout.servers)
    full = token_bytes(shape, SERVED) * rows * recipe.ppo.rollout.max_length / parallel
    room = max(0.0, min(full, limit - plan.peak.bytes - weights))
    beside = parts("engine", weights=weights, kv_cache=room)
    moments = tuple(replace(moment, parts=moment.parts + beside) for moment in plan.moments)
    return replace(plan, moments=moments), room


def _with_room(recipe: Recipe, stage: str, layout: Layout, limit: int) -> tuple[Recipe, dict[str, Any]]:
    """The recipe whose engine in the process takes for its cache what the card has left, at most what all of its
    replies fill; and the keys that say so."""
    if stage != "ppo" or recipe.ppo.rollout.engine != "vllm":
        return recipe, {}
    rows = batch_plan(recipe, "ppo", layout.ranks).responses // layout.ranks
    many = {"ppo.rollout.vllm.max_num_seqs": max(rows, recipe.ppo.rollout.vllm.max_num_seqs)}
    wide = changed(recipe, many, layout.ranks) or recipe
    plan = stage_scale(wide, stage, layout, Efficiency()).plan
    sampling = next(moment for moment in plan.moments if moment.name.startswith("engine"))
    cache = sum(part.bytes for part in sampling.parts if part.kind == "kv cache")
    weights = sum(part.bytes for part in sampling.parts if part.role == "engine") - cache
    room = min(cache, limit - (sampling.bytes - cache))
    gib = round(room / GIB - 0.05, 1)
    if gib <= 0:
        return recipe, {}
    share = min(0.95, round((weights + gib * GIB) / layout.cluster.card.memory + 0.02, 2))
    keys = {"ppo.rollout.vllm.kv_cache_gib": gib, "ppo.rollout.vllm.memory_share": share}
    keys |= many if rows > recipe.ppo.rollout.vllm.max_num_seqs else {}
    return changed(recipe, keys, layout.ranks) or recipe, keys


def _proposed(recipe: Recipe, cluster: Cluster, efficiency: Efficiency, limit: int) -> Scaled | None:
    """The plan's own changes, with every model on every card."""
    for ranks in range(cluster.cards, 0, -1):
        if any(batch_problem(recipe, stage, ranks) for stage in recipe.stages):
            continue
        layout = Layout(cluster, ranks, "one" if ranks == 1 else "ddp")
        base = changed(recipe, layout.keys(recipe), ranks)
        found = None if base is None else propose(base, limit, ranks=ranks)
        if found is None:
            return None
        fitting = changed(base, found.keys, ranks)
        fitted = None if fitting is None else _fitted(fitting, layout, efficiency, limit, {})
        if not isinstance(fitted, Scaled):
            return None
        return replace(fitted, keys=layout.keys(recipe) | found.keys | fitted.keys, changes=found.changes)
    return None
