"""The configuration that vLLM is started with."""

import json

import pytest
from peft import LoraConfig, get_peft_model

from rollouts.vllm.setup import write_config
from tests.rollouts.vllm.models import build


@pytest.mark.parametrize(
    ("where", "tied"),
    [
        ({"target_modules": ["q_proj"]}, True),
        ({"target_modules": ["embed_tokens"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
    ],
)
def test_an_adapter_on_one_of_two_tied_layers_parts_them(where, tied, tmp_path):
    write_config(get_peft_model(build("qwen2-tied"), LoraConfig(r=2, **where)), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is tied
