"""What `dress` gives a model on its way out, and what it leaves alone."""

import json
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2ForCausalLM

from align.models.critic import Critic
from align.models.save import consistent, dress, save_model
from reward.model import RewardModel
from tests.tiny_models import bert_tokenizer, byte_tokenizer, qwen2_config


def tiny(**changes):
    return Qwen2ForCausalLM(qwen2_config(eos_token_id=256, **changes))


CONTRADICTIONS = [  # and what of each has an effect
    ({"do_sample": False, "temperature": 0.9, "top_p": 0.6, "min_p": 0.1}, {"do_sample": False}),
    ({"temperature": 0.6, "top_k": 20}, {}),
    ({"num_return_sequences": 4, "max_length": 77}, {"max_length": 77}),
    ({"early_stopping": True, "length_penalty": 2.0}, {}),
    ({"output_scores": True}, {}),
    pytest.param(  # transformers 5.17 was the first to see it
        {"forced_eos_token_id": 7, "suppress_tokens": [7]}, {"forced_eos_token_id": 7}, marks=pytest.mark.since("5.17")
    ),
    ({"cache_implementation": "nonsense", "top_h": 0.3}, {}),
    ({"temperature": "hot", "do_sample": True}, {"temperature": "hot", "do_sample": True}),  # transformers takes it
    ({"max_new_tokens": -3}, {}),
    ({"max_new_tokens": "many"}, {}),
    ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
]


@pytest.mark.parametrize(("shipped", "left"), CONTRADICTIONS)
def test_a_contradicting_generation_config_is_mended(tmp_path, shipped, left, caplog):
    model = tiny()
    for key, value in shipped.items():
        setattr(model.generation_config, key, value)
    with caplog.at_level(logging.WARNING):
        save_model(model, byte_tokenizer(), tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [258, 256] and saved["pad_token_id"] == 256
    assert {key: value for key, value in saved.items() if key in shipped} == left
    assert ("saved without" in caplog.text) == (left != shipped)
    assert all(key in caplog.text for key in shipped.keys() - left.keys())
    GenerationConfig.from_pretrained(tmp_path).validate(strict=True)


def test_a_valid_one_is_left_as_it_is():
    generation = GenerationConfig(do_sample=True, top_k=20)
    assert consistent(generation) is generation


def test_parameters_of_generation_in_the_models_config_move(tmp_path):
    """transformers refuses to write them there (as in older folders' config.json)."""
    model = tiny()
    model.config.repetition_penalty, model.config.no_repeat_ngram_size = 1.3, 2
    save_model(model, byte_tokenizer(), tmp_path)
    assert "repetition_penalty" not in json.loads((tmp_path / "config.json").read_text())
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert (generation.repetition_penalty, generation.no_repeat_ngram_size) == (1.3, 2)
    AutoModelForCausalLM.from_pretrained(tmp_path).generate(torch.tensor([[5]]), max_new_tokens=1)


def test_the_pad_token_stays_out_of_a_language_models_config(tmp_path):
    save_model(tiny(), byte_tokenizer(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("pad_token_id") is None
    assert AutoModelForCausalLM.from_pretrained(tmp_path).get_input_embeddings().padding_idx is None


def test_a_tokenizer_without_chatml_leaves_the_tokens():
    model = tiny()
    dress(model, bert_tokenizer("a b"))
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 256


@pytest.mark.parametrize("kind", [RewardModel, Critic])
def test_headed_models_have_the_same_ends_and_no_generation(tmp_path, kind):
    save_model(kind(tiny().model), byte_tokenizer(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == [258, 256]
    assert not (tmp_path / "generation_config.json").exists()
    assert (tmp_path / "tokenizer.json").exists() and kind.is_saved_at(tmp_path)
