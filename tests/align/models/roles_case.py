"""A tiny base with the adapters of four roles, and the same four as models of their own."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from align.models.critic import Critic
from align.models.role_adapters import Adapter
from align.models.roles import SharedBackbone
from reward.adapter import keep_unpacked, quantization_4bit
from reward.head import ScalarHead
from reward.model import RewardModel
from tests.align.trainers import ppo_case

TARGETS = ["q_proj", "v_proj", "down_proj"]


def base(dtype: torch.dtype = torch.float32, four_bit: Path | None = None, **changes) -> nn.Module:
    """The same weights at every call; `four_bit`: a folder that holds them, to be loaded in NF4."""
    if four_bit is not None:
        options = {"quantization_config": quantization_4bit("float32")}
        model = AutoModelForCausalLM.from_pretrained(four_bit, **options).eval()
        keep_unpacked(model)
        return model
    model = ppo_case.policy(0, **changes)
    return ppo_case.exact(model) if dtype == torch.float64 else model


def config(rank: int = 4, **changes) -> LoraConfig:
    return LoraConfig(**({"r": rank, "lora_alpha": 8, "target_modules": list(TARGETS)} | changes))


def moved(model: nn.Module, seed: int) -> nn.Module:
    """Adapter weights that are not as they start: B is no longer 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def head(seed: int, double: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    made = ScalarHead(16)
    return made.double() if double else made


def separate(dtype: torch.dtype = torch.float32, **changes) -> dict[str, nn.Module]:
    """Four LoRA models, each on a base of its own: the reward's adapter has another rank and other targets."""
    policy, body = base(dtype, **changes), base(dtype, **changes).base_model
    sft = moved(get_peft_model(policy, config(task_type="CAUSAL_LM")), 1)
    rm = moved(get_peft_model(body, config(3, target_modules=["q_proj", "o_proj", "up_proj"])), 2)
    return {
        "policy": sft,
        "reference": copy.deepcopy(sft).requires_grad_(False),
        "critic": Critic(copy.deepcopy(rm), head(7)),
        "reward": RewardModel(rm, head(8), 0.3, scale=1.7).requires_grad_(False),
    }


def adapters(models: dict[str, nn.Module]) -> dict[str, Adapter]:
    reward = Adapter.of(models["reward"].backbone, of_body=True)
    sft = Adapter.of(models["policy"])
    return {"policy": sft, "reference": sft, "reward": reward, "critic": reward}


def shared(models: dict[str, nn.Module], dtype: torch.dtype = torch.float32, **changes) -> dict[str, nn.Module]:
    """The same four as roles of one backbone."""
    backbone = SharedBackbone(base(dtype, **changes), adapters(models))
    return {
        "policy": backbone.causal("policy"),
        "reference": backbone.causal("reference"),
        "critic": Critic(backbone.headless("critic"), copy.deepcopy(models["critic"].head)),
        "reward": RewardModel(
            backbone.headless("reward"), copy.deepcopy(models["reward"].head), 0.3, scale=1.7
        ).requires_grad_(False),
    }
