"""The models of the ppo stage: four (three without a critic), apart or as adapters on one base."""

from __future__ import annotations

from dataclasses import dataclass, replace

from align.plan.models import Model, frozen_model, trained_model
from align.plan.parts import MemoryPart
from align.plan.shapes import Shape
from align.recipe import Recipe
from align.recipe.lineage import init_origin, judge_origins


@dataclass(frozen=True, slots=True)
class StageModels:
    """The models of the stage; `critic` is None where the advantages need none."""

    policy: Model
    critic: Model | None
    reference: Model
    rewards: tuple[Model, ...]
    offload: tuple[str, ...] = ()

    @property
    def trained(self) -> tuple[Model, ...]:
        """Those in training, in the order in which an update computes their gradients."""
        return (self.policy,) if self.critic is None else (self.policy, self.critic)

    def resident(self, ranks: int) -> tuple[MemoryPart, ...]:
        """What they hold for good."""
        critic = () if self.critic is None else (self.critic,)
        return tuple(
            part for model in (self.policy, *critic, self.reference, *self.rewards) for part in model.resident(ranks)
        )

    def without_idle(self, held: tuple[MemoryPart, ...], *busy: str) -> tuple[MemoryPart, ...]:
        """`held` without what waits in the host's memory; `busy`: roles at work, or `ROLE's moments`."""
        away = {"reference"} if "reference" in self.offload else set()
        away |= {one.role for one in self.rewards} if "reward" in self.offload else set()
        moments = "optimizer" in self.offload
        return tuple(
            part
            for part in held
            if part.role not in away - set(busy)
            and not (moments and part.kind == "optimizer" and f"{part.role}'s moments" not in busy)
        )

    def judging(self, one: Model) -> tuple[str, ...]:
        """The reward models that are asked together with `one`."""
        return tuple(each.role for each in self.rewards if key_of(each.role) == key_of(one.role))


def key_of(role: str) -> str:
    """The key of the recipe that a reward model is a part of: `reward`, or `gold_reward` and `judge`, which judge in
    evaluations alone."""
    return role.partition(".")[0]


def shares_backbone(recipe: Recipe) -> bool:
    """Whether the models are adapters of one base."""
    asked = recipe.ppo.shared_backbone
    return recipe.model.adapter != "none" if asked == "auto" else bool(asked)


def roles(recipe: Recipe, policy: Shape, critic: Shape | None, rewards: dict[str, Shape]) -> StageModels:
    """The models of the recipe's ppo stage; the weights of a shared base are the policy's."""
    section, model = recipe.ppo, recipe.model
    shared = shares_backbone(recipe)
    from_adapter = init_origin(recipe, "ppo").kind == "stage"  # the reference is the adapter that training starts from
    found = StageModels(
        trained_model("policy", policy, model, section.policy),
        None if critic is None else trained_model("critic", critic, model, section.critic, head=False),
        frozen_model("reference", policy, model, head=True, adapter=from_adapter),
        tuple(frozen_model(role, shape, model, head=False, adapter=True) for role, shape in rewards.items()),
    )
    if not shared:
        return found
    alone = judge_origins(recipe)  # they only look on, and are loaded by themselves
    return StageModels(
        found.policy,
        None if critic is None else replace(found.critic, own_weights=critic != policy),
        replace(found.reference, own_weights=False),
        tuple(replace(one, own_weights=one.body.shape != policy or one.role in alone) for one in found.rewards),
    )
