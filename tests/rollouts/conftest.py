"""A tiny random model whose next-token distributions are far from uniform."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM


def build(seed: int = 0, **changes) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    shape = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.6,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return Qwen2ForCausalLM(Qwen2Config(**(shape | changes))).eval()


@pytest.fixture
def model() -> Qwen2ForCausalLM:
    return build()


@pytest.fixture
def build_model():
    return build
