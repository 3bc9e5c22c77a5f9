"""Which changes of the recipe make it fit, found by planning the changed recipe.

Changes are tried in the order of what they cost: first those that change neither gradients nor results, then time, then
what is learnt. A step is taken where it lowers the peak of a stage that does not fit; in the end every change that the
others make needless is taken back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from align.plan.parts import StagePlan
from align.plan.predict import plan_stages
from align.recipe import STAGES, Recipe
from align.recipe.batch import batch_plan
from align.recipe.load import validate
from align.recipe.ppo_section import PPOSection

SHORTEST = 128  # tokens of a row that a proposal still asks for
MOST_STEPS = 60
PARTS = ("reference", "reward", "optimizer")  # of ppo.offload
WORTH = 0.995  # of the former peak: a step must lower it below that


@dataclass(frozen=True, slots=True)
class Proposal:
    """Changes by dotted key, and the plan with all of them."""

    keys: dict[str, Any]
    plans: tuple[StagePlan, ...]

    @property
    def changes(self) -> tuple[str, ...]:
        """As `key=value`."""
        return words(self.keys)

    @property
    def peak(self) -> int:
        """Bytes of the highest stage."""
        return max(plan.peak.bytes for plan in self.plans)


def propose(recipe: Recipe, limit: int, *, ranks: int = 1, device: str = "gpu") -> Proposal | None:
    """The changes with which every stage needs at most `limit` bytes; None where no combination does."""
    changes: dict[str, Any] = {}
    plans = plan_stages(recipe, ranks=ranks, device=device)
    for _ in range(MOST_STEPS):
        worst = max(plans, key=lambda plan: plan.peak.bytes)
        if worst.peak.bytes <= limit:
            return _pruned(recipe, changes, limit, ranks, device)
        now, step = changed(recipe, changes, ranks), None
        for step in _steps(now, worst, ranks):
            wider = changes | step
            tried = changed(recipe, wider, ranks)
            if tried is None:
                continue
            planned = plan_stages(tried, ranks=ranks, device=device)
            same = next(plan for plan in planned if plan.stage == worst.stage)
            if same.peak.bytes <= WORTH * worst.peak.bytes:
                changes, plans = wider, planned
                break
        else:
            return None
    return None


def alone(recipe: Recipe, stage: StagePlan, *, ranks: int = 1, device: str = "gpu") -> list[Proposal]:
    """What each first step would do to a stage by itself, best first."""
    found = []
    for step in _steps(recipe, stage, ranks):
        tried = changed(recipe, step, ranks)
        plans = () if tried is None else tuple(plan_stages(tried, ranks=ranks, device=device))
        found += [Proposal(step, (plan,)) for plan in plans if plan.stage == stage.stage]
    return sorted((one for one in found if one.peak < stage.peak.bytes), key=lambda one: one.peak)


def changed(recipe: Recipe, changes: dict[str, Any], ranks: int) -> Recipe | None:
    """The recipe with `changes` by dotted key; None where its own rules forbid them."""
    data = recipe.model_dump(mode="json", exclude_unset=True)
    for key, value in changes.items():
        *path, last = key.split(".")
        here = data
        for name in path:
            here = here.setdefault(name, {})
        here[last] = value
    found, problems = validate(data, ranks)
    return None if problems else found


def _pruned(recipe: Recipe, changes: dict[str, Any], limit: int, ranks: int, device: str) -> Proposal:
    for key in list(changes):
        fewer = {name: value for name, value in changes.items() if name != key}
        tried = changed(recipe, fewer, ranks)
        if tried is not None and all(
            plan.peak.bytes <= limit for plan in plan_stages(tried, ranks=ranks, device=device)
        ):
            changes = fewer
    plans = plan_stages(changed(recipe, changes, ranks) or recipe, ranks=ranks, device=device)
    return Proposal(changes, tuple(plans))


def words(changes: dict[str, Any]) -> tuple[str, ...]:
    """`key=value` of each, as the command line takes them."""
    return tuple(f"{key}={_word(value)}" for key, value in changes.items())


def _word(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _steps(recipe: Recipe, worst: StagePlan, ranks: int) -> Iterator[dict[str, Any]]:
    """Next steps for a stage that does not fit, cheapest first."""
    stage, section, model = worst.stage, getattr(recipe, worst.stage), recipe.model
    adapted, is_ppo = STAGES[stage].adapted, isinstance(section, PPOSection)
    if not is_ppo and section.eval_batch_size > 1 and "held-out" in worst.peak.name:
        yield {f"{stage}.eval_batch_size": section.eval_batch_size // 2}
    rollout = getattr(section, "rollout", None)
    if (
        rollout is not None
        and rollout.batch_size > 1
        and worst.peak.name.partition(": ")[2].startswith(("sampl", "scor"))
    ):
        yield {f"{stage}.rollout.batch_size": rollout.batch_size // 2}
    yield from _smaller_batches(recipe, stage, ranks)
    if not model.gradient_checkpointing:
        yield {"model.gradient_checkpointing": True}
    if is_ppo:
        yield from _offload(recipe)
    optimizers = section.optimizers().items()
    eight = {
        f"{stage}{role and '.'}{role}.optimizer": "adamw_8bit" for role, one in optimizers if one.optimizer == "adamw"
    }
    if eight:
        yield eight
    shared = {} if recipe.ppo is None or recipe.ppo.shared_backbone is False else _roles_stay(recipe)
    if adapted and model.adapter == "none":
        yield {"model.adapter": "lora"} | shared
        if model.dtype == "float32":
            yield {"model.adapter": "lora", "model.dtype": "bfloat16", "model.mixed_precision": "bf16"} | shared
    if adapted and model.adapter != "qlora":
        yield {"model.adapter": "qlora", "model.dtype": "bfloat16", "model.mixed_precision": "bf16"} | shared
    if is_ppo and model.adapter != "none" and section.shared_backbone is False:
        yield {"ppo.shared_backbone": True} | _roles_stay(recipe)
    yield from _shorter(recipe, stage)


def _offload(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """What the recipe lets wait in the host's memory; roles of one backbone have nothing to offload."""
    section, model = recipe.ppo, recipe.model
    paged = any(getattr(section, role).optimizer.startswith("paged") for role in section.trained_roles)
    shared = model.adapter != "none" and section.shared_backbone is not False
    parts = ([] if shared else ["reference", "reward"]) + ([] if paged else ["optimizer"])
    if set(parts) - set(section.offload):
        yield {"ppo.offload": [part for part in PARTS if part in {*parts, *section.offload}]}


def _roles_stay(recipe: Recipe) -> dict[str, Any]:
    """What else changes where models become roles of one backbone: these have nothing to offload."""
    offloaded = recipe.ppo.offload
    kept = [part for part in offloaded if part == "optimizer"]
    return {} if kept == list(offloaded) else {"ppo.offload": kept}


def _smaller_batches(recipe: Recipe, stage: str, ranks: int) -> Iterator[dict[str, Any]]:
    section, plan = getattr(recipe, stage), batch_plan(recipe, stage, ranks)
    micro, is_ppo = plan.micro_batch_size, isinstance(section, PPOSection)
    fitting = [size for size in range(micro // 2, 0, -1) if is_ppo or plan.rank_batch_size % size == 0]
    if is_ppo and section.uses_ptx and plan.ptx_micro_batch_size > 1:
        yield {"ppo.ptx_micro_batch_size": plan.ptx_micro_batch_size // 2}
    if fitting and is_ppo and section.tokens_at_once is not None:
        yield {f"{stage}.micro_batch_tokens": fitting[0] * section.rollout.max_length}
    elif fitting:
        yield {f"{stage}.micro_batch_size": fitting[0]}


def _shorter(recipe: Recipe, stage: str) -> Iterator[dict[str, Any]]:
    section = getattr(recipe, stage)
    rollout = getattr(section, "rollout", None)
    if rollout is not None:
        for name in ("max_completion_length", "max_prompt_length"):
            if getattr(rollout, name) >= 2 * SHORTEST:
                yield {f"{stage}.rollout.{name}": getattr(rollout, name) // 2}
    if isinstance(section, PPOSection) and section.uses_ptx and section.ptx_max_length >= 2 * SHORTEST:
        yield {"ppo.ptx_max_length": section.ptx_max_length // 2}
    if getattr(section, "max_length", 0) >= 2 * SHORTEST:
        yield {f"{stage}.max_length": section.max_length // 2}
