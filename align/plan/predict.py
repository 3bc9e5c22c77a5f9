"""From a recipe to the plan of every stage."""

from __future__ import annotations

from dataclasses import replace

from align.plan.models import Model, trained_model
from align.plan.parts import StagePlan, gib
from align.plan.plan_ppo import plan_ppo
from align.plan.plan_supervised import plan_supervised
from align.plan.ppo_models import StageModels, roles, shares_backbone
from align.plan.shapes import Shape, find_shape
from align.recipe import STAGES, Recipe
from align.recipe.lineage import Origin, critic_origin, init_origin, judge_origins, reward_origins
from align.recipe.supervised_sections import RewardSection
from align.runtime.resolve import resolve

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
    return [resolve(STAGES[stage].plan)(recipe, stage, ranks=ranks, device=device) for stage in recipe.stages]


def plan_ppo_stage(recipe: Recipe, stage: str, *, ranks: int, device: str) -> StagePlan:
    """The plan of ppo; where only the loaded models tell whether they share a backbone, what it is if they do not."""
    shapes = _ppo_shapes(recipe)
    plan = plan_ppo(recipe, *shapes, ranks=ranks, device=device)
    if shares_backbone(recipe) and recipe.ppo.shared_backbone == "auto" and not _one_root(recipe):
        apart = recipe.model_copy(update={"ppo": recipe.ppo.model_copy(update={"shared_backbone": False})})
        other = plan_ppo(apart, *shapes, ranks=ranks, device=device)
        plan = replace(plan, assumption=f"{ASSUMED}, {gib(other.peak.bytes)} GiB at most")
    return plan


def plan_supervised_stage(recipe: Recipe, stage: str, *, ranks: int, device: str) -> StagePlan:
    """The plan of a supervised stage, or of one that samples and then trains so."""
    rewards = _reward_shapes(recipe, stage) if STAGES[stage].samples else {}
    return plan_supervised(recipe, stage, supervised_model(recipe, stage), rewards, ranks=ranks, device=device)


def supervised_model(recipe: Recipe, stage: str) -> Model:
    """What a supervised stage, or one that samples and then trains so, trains."""
    section, shape = getattr(recipe, stage), _shape(recipe, init_origin(recipe, stage), f"{stage}.init_from")
    head = not isinstance(section, RewardSection)
    return trained_model("model", shape, recipe.model, section, head=head, adapted=STAGES[stage].adapted)


def ppo_models(recipe: Recipe) -> StageModels:
    """The models of the ppo stage."""
    return roles(recipe, *_ppo_shapes(recipe))


def _ppo_shapes(recipe: Recipe) -> tuple[Shape, Shape | None, dict[str, Shape]]:
    """Of policy, critic (where there is one) and reward models."""
    policy = _shape(recipe, init_origin(recipe, "ppo"), "ppo.init_from")
    critic = _shape(recipe, critic_origin(recipe), "ppo.critic_from") if recipe.ppo.estimator.critic else None
    return policy, critic, _reward_shapes(recipe, "ppo")


def _reward_shapes(recipe: Recipe, stage: str) -> dict[str, Shape]:
    origins = reward_origins(recipe, stage) | judge_origins(recipe, stage)
    return {role: _shape(recipe, origin, f"{stage}.{role}") for role, origin in origins.items()}


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
    """The model at the beginning of the chain of adapters."""
    of_stage = origin.kind == "stage" and getattr(recipe, origin.value) is not None
    if not of_stage or not STAGES[origin.value].adapted:
        return origin
    return _root(recipe, init_origin(recipe, origin.value))
