"""Tiny random models of every family that vLLM samples from, and what its tests share.

Spread-out logits (wide initialization, biases that are not zero), so that a wrong weight shows in what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rollouts.settings import VLLMSettings

VOCABULARY = 300
FAMILIES = ("qwen2-tied", "qwen2-untied", "qwen2-window-off", "qwen3", "qwen3-moe")
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 7,  # of the configuration alone: replies end at the stop ids of a call
    "pad_token_id": None,
}


def build(family: str = "qwen2-tied", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any):
    """A random model of `family`, one of `FAMILIES`."""
    torch.manual_seed(seed)
    shape = SHAPE | {"tie_word_embeddings": family.endswith("-tied")} | changes
    if family == "qwen3-moe":
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**(experts | {"head_dim": 32} | shape)))
    elif family.startswith("qwen3"):
        model = Qwen3ForCausalLM(Qwen3Config(**({"head_dim": 32} | shape)))
    else:
        window = {"use_sliding_window": False, "sliding_window": 16} if family == "qwen2-window-off" else {}
        model = Qwen2ForCausalLM(Qwen2Config(**(window | shape)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.normal_(1, 0.2)
    return model.to(dtype).eval()


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a push streams for a whole model whose checkpoints have the names of its parameters."""
    yield from model.named_parameters()


def settings(**changes: Any) -> VLLMSettings:
    """300 tokens, a cache of 50 MB."""
    return VLLMSettings(**({"max_model_len": 300, "kv_cache_gib": 0.05} | changes))


def random_prompts(count: int, *, longest: int = 40, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to `longest` ids."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def logits_after(model: nn.Module, ids: list[int], start: int) -> Tensor:
    """logits_TV, float64, of the ids from `start` on."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, start - 1 : -1].double()
