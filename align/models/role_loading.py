"""The roles of a shared backbone from folders, as `align.models.role_fit` planned them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from align.models import adapters
from align.models.critic import Critic
from align.models.load import load_options
from align.models.role_adapters import Adapter
from align.models.role_fit import SharedPlan
from align.models.roles import RoleView, SharedBackbone
from align.recipe.model_section import ModelSection
from data_formats.chat_format import remembered
from reward.folder import local_folder
from reward.loading import load_pretrained, saved_tokenizer
from reward.model import RewardModel


@dataclass(frozen=True, slots=True)
class Roles:
    """The models of PPO on one backbone, with a critic or without; `rewards` are frozen, by path."""

    policy: RoleView
    reference: RoleView
    critic: Critic | None
    rewards: dict[str, RewardModel]


def load_roles(plan: SharedPlan, model: ModelSection, *, seed: int = 0) -> Roles:
    """Load the base once, and each role's adapter and head.

    Args:
        model: dtype, attention implementation, gradient checkpointing, and the shape of a new adapter.
        seed: draws new adapters, the same on every rank; the global generator is left alone.

    Raises:
        MissingFileError, ModelFileError: a base or adapter that is not there, or torn.
        RoleError: an adapter that does not fit the base.
        RecipeError: adapter targets that the model does not have.
    """
    base = _load_base(plan, model)
    body = f"{base.base_model_prefix}."
    if plan.policy is None:
        new = remembered(saved_tokenizer(plan.base)).get("added", ())
        policy, reference = Adapter(adapters.lora_config(base, model.lora, plan.revision, new)), None
    else:
        policy = reference = Adapter.read(plan.policy)
    names = {path: "reward" if not at else f"reward_{at}" for at, path in enumerate(plan.rewards)}
    added = {"policy": policy, "reference": reference}
    added |= {name: Adapter.read(path, of_body=True) for path, name in names.items()}
    if plan.with_critic:
        added["critic"] = policy.for_body(body) if plan.critic is None else _critic_adapter(plan.critic, body)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        backbone = SharedBackbone(base, added)
    rewards = {
        path: RewardModel.from_pretrained(path, backbone=backbone.headless(name)).requires_grad_(False)
        for path, name in names.items()
    }
    critic = _critic(backbone, plan.critic) if plan.with_critic else None
    if model.gradient_checkpointing:
        backbone.gradient_checkpointing_enable()
    return Roles(backbone.causal("policy"), backbone.causal("reference"), critic, rewards)


def _critic(backbone: SharedBackbone, start: str | None) -> Critic:
    """On the role's adapter, with the head that is saved where it starts, else a new one."""
    body = backbone.headless("critic")
    has_head = start is not None and Critic.is_saved_at(start)
    return (Critic.from_pretrained(start, backbone=body) if has_head else Critic(body)).eval()


def _critic_adapter(path: str, body: str) -> Adapter:
    headed = any(kind.is_saved_at(path) for kind in (Critic, RewardModel))
    return Adapter.read(path, of_body=True) if headed else Adapter.read(path).for_body(body)


def _load_base(plan: SharedPlan, model: ModelSection) -> nn.Module:
    from transformers import AutoModelForCausalLM

    told = load_options(plan.base, model)
    options: dict[str, Any] = {name: told[name] for name in ("dtype", "attn_implementation", "trust_remote_code")}
    options |= {"attention_dropout": 0.0}
    options |= {} if plan.revision is None else {"revision": plan.revision}
    options |= {} if plan.quantization is None else {"quantization_config": plan.quantization}
    base = load_pretrained(AutoModelForCausalLM, plan.base, **options)
    folder = local_folder(plan.base)
    base.name_or_path = plan.base if folder is None else str(folder.resolve())
    return base
