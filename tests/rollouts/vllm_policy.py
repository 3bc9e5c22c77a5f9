"""A random policy that vLLM takes in a second, and settings of a server that is small enough for tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rollouts.settings import VLLMSettings

VOCABULARY = 300


def policy(seed: int = 0, **changes: Any) -> Qwen2ForCausalLM:
    """Two layers of width 64 with tied embeddings, float32; its next-token distributions are far from uniform."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return Qwen2ForCausalLM(Qwen2Config(**(shape | changes))).eval()


def settings(**changes: Any) -> VLLMSettings:
    """A key-value cache of 32 MiB."""
    small = {"max_model_len": 256, "kv_cache_gib": 1 / 32, "start_timeout": 300.0, "request_timeout": 120.0}
    return VLLMSettings(**(small | changes))
