"""From a recipe to the plan of every stage."""

from __future__ import annotations

from dataclasses import replace

from align.plan.parts import StagePlan, gib
from align.plan.ppo import plan_ppo, shares_backbone
from align.plan.shapes import Shape, find_shape
from align.plan.supervised import plan_supervised
from align.recipe import Recipe
from align.recipe.lineage import Origin, critic_origin, gold_origins, init_origin, reward_origins

ASSUMED = (
    "policy, reward model and critic are adapters on one base (ppo.shared_backbone: auto looks when it loads them); "
    "where they are not, ppo holds each apart"
)


def plan_stages(recipe: Recipe, *, ranks: int = 1, device: str = "gpu") -> list[StagePlan]:
    """The plan of each stage, in the order they run.

    Args:
        ranks: processes under DDP, each with every model.
        device: gpu, or cpu (which works on smaller pieces of the logits).

    Raises:
        PlanError: a model whose shape is not known.
    """
    return [_plan(recipe, stage, ranks, device) for stage in recipe.stages]


def _plan(recipe: Recipe, stage: str, ranks: int, device: str) -> StagePlan:
    shape = _shape(recipe, init_origin(recipe, stage), f"{stage}.init_from")
    if stage == "ppo":
        origins = reward_origins(recipe) | gold_origins(recipe)
        rewards = {role: _shape(recipe, origin, f"ppo.{role}") for role, origin in origins.items()}
        critic = _shape(recipe, critic_origin(recipe), "ppo.critic_from") if recipe.ppo.estimator.critic else None
        plan = plan_ppo(recipe, shape, critic, rewards, ranks=ranks, device=device)
        if shares_backbone(recipe) and recipe.ppo.shared_backbone == "auto" and not _one_root(recipe):
            apart = recipe.model_copy(update={"ppo": recipe.ppo.model_copy(update={"shared_backbone": False})})
            other = plan_ppo(apart, shape, critic, rewards, ranks=ranks, device=device)
            plan = replace(plan, assumption=f"{ASSUMED}, {gib(other.peak.bytes)} GiB at most")
        return plan
    origins = reward_origins(recipe, stage) if stage == "rejection" else {}
    rewards = {role: _shape(recipe, origin, f"{stage}.{role}") for role, origin in origins.items()}
    return plan_supervised(recipe, stage, shape, rewards, ranks=ranks, device=device)


def _shape(recipe: Recipe, origin: Origin, key: str) -> Shape:
    """A stage has the shape of what it started from."""
    if origin.kind == "stage" and getattr(recipe, origin.value) is not None:
        return _shape(recipe, init_origin(recipe, origin.value), f"{origin.value}.init_from")
    if origin.kind == "path" and origin.value != recipe.model.path:
        return find_shape(origin.value, key)
    if recipe.model.path is not None:
        return find_shape(recipe.model.path)
    return Shape.of_config(recipe.model.architecture.model_dump(), "model.architecture")


def _one_root(recipe: Recipe) -> bool:
    """Whether the recipe alone says that ppo's models stand on one base."""
    trained = [*reward_origins(recipe).values(), *([critic_origin(recipe)] if recipe.ppo.estimator.critic else [])]
    roots = {_root(recipe, origin) for origin in (init_origin(recipe, "ppo"), *trained)}
    return len(roots) == 1 and all(origin.kind == "stage" for origin in trained)


def _root(recipe: Recipe, origin: Origin) -> Origin:
    """The model at the beginning of the chain of adapters; base trains all weights."""
    if origin.kind != "stage" or origin.value == "base" or getattr(recipe, origin.value) is None:
        return origin
    return _root(recipe, init_origin(recipe, origin.value))
