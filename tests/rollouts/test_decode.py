"""The decode loop against transformers' `generate`, over families, and which models it leaves to it."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
import transformers

from rollouts.decodable import probe, why_not
from rollouts.hf import HFEngine
from rollouts.key_values import cache_keyword
from rollouts.protocol import SamplingParams

PROMPTS = [[5, 6, 7, 8, 9], [3], [11, 12, 13], [20, 21, 22, 23, 24, 25, 26, 27], [2, 4], [9, 9, 9]]
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.6,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def build(family, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SHAPE | changes))
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def generated(engine, prompts, params):
    """What the engine gives when its model is left to `generate`."""
    engine._decodable = False
    return engine.generate(prompts, params)


TAKEN = {
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Llama": {"num_key_value_heads": 4},
    "GPTNeoX": {},
    "GPT2": {"n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 4},
    "Mixtral": {"num_local_experts": 4, "sliding_window": None},
    "Olmo2": {},
    "Gemma": {"head_dim": 8},
    "Phi3": {"sliding_window": None},
}


@pytest.mark.parametrize("family", TAKEN)
def test_tokens_are_those_of_generate(family):
    model = build(family, **TAKEN[family])
    if family != "Mixtral":  # whose experts have no float64
        model = model.double()  # rows beside each other round as alone
    for params in (
        SamplingParams(temperature=0, max_new_tokens=9),
        SamplingParams(n=3, top_p=0.9, max_new_tokens=9, stop_token_ids=(7, 8, 21), min_new_tokens=2, seed=3),
    ):
        engine = HFEngine(model, 0, batch_size=5)
        found = engine.generate(PROMPTS, params)
        assert engine._decodable
        wanted = generated(HFEngine(model, 0, batch_size=64), PROMPTS, params)
        assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert (one.kept_mass or ()) == pytest.approx(other.kept_mass or (), abs=1e-4)
    assert len({len(one.token_ids) for one in found}) > 1  # replies ended at different steps


LEFT = {
    "Gemma2": ({"head_dim": 8}, "window"),
    "Gemma3Text": ({"head_dim": 8}, "window"),
    "Mistral": ({"sliding_window": 4}, "window"),
    "Mamba": ({"num_heads": 4}, "does not take"),
    "Bloom": ({"n_head": 4, "n_layer": 2}, "does not take position_ids"),
    "Llama": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "angles"),
}


@pytest.mark.parametrize("family", LEFT)
def test_other_models_are_left_to_generate_and_the_log_says_why(family, caplog):
    changes, reason = LEFT[family]
    engine = HFEngine(build(family, **changes), 0)
    with caplog.at_level(logging.INFO, logger="rollouts.hf"):
        for _ in range(2):
            completions = engine.generate(PROMPTS, SamplingParams(n=2, max_new_tokens=3, seed=0))
    assert [len(one.token_ids) for one in completions] == [3] * 12
    said = [record.getMessage() for record in caplog.records if record.name == "rollouts.hf"]
    assert len(said) == 1 and "transformers' generate" in said[0] and reason in said[0]


def test_a_soft_capped_attention_is_refused_when_it_is_asked():
    model = build("Gemma2", head_dim=8, layer_types=["full_attention"] * 2)
    assert why_not(model) is None and "softcap" in probe(model, 0)


class Forgetful(transformers.Qwen2ForCausalLM):
    """Reads its own positions: with a cache that says nothing of lengths every token stands at the first."""

    @functools.wraps(transformers.Qwen2ForCausalLM.forward)
    def forward(self, input_ids=None, position_ids=None, **more):
        past = more.get(cache_keyword(self))
        if past is not None and past.get_seq_length() == 0 and input_ids.shape[1] == 1:
            position_ids = None
        return super().forward(input_ids, position_ids=position_ids, **more)


def test_the_probe_refuses_a_model_that_computes_something_else(caplog):
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**(SHAPE | {"initializer_range": 0.02}))
    assert probe(transformers.Qwen2ForCausalLM(config).eval(), 0) is None
    model = Forgetful(config).eval()
    assert why_not(model) is None and "off those of generate" in probe(model, 0)
    with caplog.at_level(logging.INFO, logger="rollouts.hf"):
        engine = HFEngine(model, 0)
        engine.generate([[1, 2]], SamplingParams(max_new_tokens=2))
    assert "off those of generate" in caplog.text and engine._decodable is False


def test_weights_that_are_broken_decide_nothing(build_model):
    model = build_model()
    whole = model.model.norm.weight.clone()
    engine = HFEngine(model, 0)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(Exception, match="not finite"):
        engine.generate(PROMPTS, SamplingParams(max_new_tokens=2))
    with torch.no_grad():
        model.model.norm.weight.copy_(whole)
    engine.generate(PROMPTS, SamplingParams(max_new_tokens=2))
    assert engine._decodable


def test_a_prompt_is_read_once_and_what_has_ended_is_not_computed(build_model):
    model, seen = build_model().double(), []
    engine = HFEngine(model, 0, batch_size=6)
    engine.generate([[1]], SamplingParams(max_new_tokens=2))
    model.model.register_forward_pre_hook(
        lambda module, args, told: seen.append(tuple(told["input_ids"].shape)), with_kwargs=True
    )
    params = SamplingParams(n=3, max_new_tokens=12, stop_token_ids=tuple(range(12)), seed=0)
    completions = engine.generate(PROMPTS, params)
    read = sum(columns for rows, columns in seen if rows == 1 and columns > 1)
    alone = sum(rows for rows, columns in seen if columns == 1)
    tokens = sum(len(one.token_ids) for one in completions)
    drawn_while_reading = len(PROMPTS) * 3
    assert read + alone == sum(map(len, PROMPTS)) + tokens - drawn_while_reading
    assert max(rows for rows, columns in seen if columns == 1) <= 6


def test_the_config_is_the_models_own_again(build_model):
    model = build_model()
    engine = HFEngine(model, 0)
    with pytest.raises(RuntimeError, match="stop here"):
        handle = model.lm_head.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop here")))
        engine._decodable = True
        engine.generate(PROMPTS, SamplingParams(max_new_tokens=2))
    handle.remove()
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_shares_the_config_meanwhile_attends_as_ever(build_model):
    """It may be trained in another thread; and two that sample at once leave nothing behind."""
    from rollouts.key_values import attends_here

    model = build_model()
    other = type(model)(model.config)
    assert other.config is model.config
    with attends_here(model):
        with attends_here(other):
            assert {module.config._attn_implementation for module in other.modules() if hasattr(module, "config")} == {
                "prompts_and_replies"
            }
        assert model.model.layers[0].self_attn.config._attn_implementation == "prompts_and_replies"
        assert all(module.config is other.config for module in other.modules() if hasattr(module, "config"))
        assert other.config._attn_implementation == "sdpa"
    assert model.config is other.config
