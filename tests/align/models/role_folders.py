"""Folders of a chain: a base, a policy's adapter on it, and reward models, as the stages leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM

from align.models import adapters
from align.models.critic import Critic
from align.recipe.model_section import ModelSection
from reward.adapter import keep_unpacked, quantization_4bit
from reward.head import ScalarHead
from reward.model import RewardModel
from tests.align.models.roles_case import moved
from tests.tiny_models import byte_tokenizer, save_causal_lm

SEEDS = {"policy": 11, "reward": 12, "critic": 13}


def base(folder: Path, name: str = "base", seed: int = 0, **changes: Any) -> Path:
    return save_causal_lm(folder / name, seed=seed, **changes)


def _options(four_bit: bool) -> dict[str, Any]:
    return {"quantization_config": quantization_4bit("float32")} if four_bit else {}


def policy(folder: Path, on: Path, name: str = "sft", four_bit: bool = False, **lora: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(on, **_options(four_bit))
    config = LoraConfig(**({"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | lora))
    return saved(moved(get_peft_model(model, config), SEEDS["policy"]), folder / name)


def reward(folder: Path, on: Path, name: str = "rm", four_bit: bool = False, kind: type = RewardModel) -> Path:
    """On the base's body, of another rank and with other targets than the policy."""
    body = AutoModel.from_pretrained(on, **_options(four_bit))
    keep_unpacked(body)
    config = LoraConfig(r=2, target_modules=["v_proj", "up_proj"])
    seed = SEEDS["reward" if kind is RewardModel else "critic"]
    torch.manual_seed(seed)
    more = {"shift": 0.5, "pooling": "mean"} if kind is RewardModel else {}
    return saved(kind(moved(get_peft_model(body, config), seed), ScalarHead(16), **more), folder / name)


def whole_reward(folder: Path, on: Path, name: str = "whole_rm") -> Path:
    torch.manual_seed(SEEDS["reward"])
    return saved(RewardModel.from_backbone(on), folder / name)


def critic(folder: Path, on: Path, name: str = "critic") -> Path:
    return reward(folder, on, name, kind=Critic)


def saved(model: Any, folder: Path) -> Path:
    adapters.save_pretrained(model, folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def section(on: Path, adapter: str = "lora", **more: Any) -> ModelSection:
    lora = {"rank": 3, "alpha": 6, "targets": ("q_proj", "gate_proj")}
    if adapter == "qlora":
        more["quantization"] = {"compute_dtype": "float32"}
    return ModelSection(path=str(on), adapter=adapter, lora=lora, **more)
