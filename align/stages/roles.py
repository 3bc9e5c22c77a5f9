"""Whether PPO's models share one backbone (`ppo.shared_backbone`), and loading them when they do."""

from __future__ import annotations

from typing import Any

from align.recipe import Recipe
from align.recipe.lineage import critic_origin, reward_origins
from align.recipe.ppo_section import PPOSection
from align.runs.seeding import derive
from align.stages import common


def shared_roles(recipe: Recipe, section: PPOSection, tokenizer: Any, policy_path: str, sharded: bool) -> Any:
    """Policy, reference, critic and reward models as adapters of one base (`align.models.role_loading.Roles`), or None
    where each is to have a backbone of its own: `shared_backbone: false`, or `auto` and they do not fit.

    Args:
        sharded: whether the launcher asked for FSDP2.

    Raises:
        RoleError: `shared_backbone: true`, and they do not fit; says why.
        MissingFileError, ModelFileError: a model that is not there, or torn.
    """
    from align.models.role_adapters import RoleError
    from align.models.role_fit import plan_sharing
    from align.models.role_loading import load_roles

    if section.shared_backbone is False or recipe.model.adapter == "none":
        return None
    rewards = [common.origin_path(recipe, origin, stage="ppo") for origin in reward_origins(recipe).values()]
    critic = common.origin_path(recipe, critic_origin(recipe), stage="ppo") if section.estimator.critic else None
    try:
        if sharded:
            raise RoleError("FSDP2 shards each model on its own; launch with DDP to share one")
        plan = plan_sharing(policy_path, rewards, critic, recipe.model, tokenizer.get_vocab())
        roles = load_roles(plan, recipe.model, seed=derive(recipe.seed, "ppo", "adapter"))
    except RoleError as reason:
        if section.shared_backbone is True:
            raise RoleError(f"ppo.shared_backbone=true: {reason}") from reason
        common.LOG.info("ppo: every model has a backbone of its own: %s", reason)
        return None
    what = "a copy of the policy's adapter" if plan.policy is not None else "the base alone"
    common.LOG.info("ppo: all models are adapters of one base, %s; the reference is %s", plan.base, what)
    return roles
