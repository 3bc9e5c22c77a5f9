"""From a recipe's rollout section to an engine."""

import logging
from pathlib import Path

import pytest

from align.recipe.ppo_section import PPOConfig
from align.recipe.rollout_section import RolloutSection
from align.trainers.engines import sampling_engine, training_engine, vllm_settings
from align.trainers.ppo import make_accelerator
from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from rollouts.settings import VLLMSettings
from rollouts.vllm.engine import VLLMEngine
from tests.align.trainers import ppo_case
from tests.rollouts.vllm.models import build

SMALL = {"kv_cache_gib": 0.05, "max_num_seqs": 4, "eager": True, "urls": (), "probe_tolerance": 0.1}


def test_vllm_is_told_what_the_recipe_says():
    rollout = RolloutSection(engine="vllm", max_prompt_length=30, max_completion_length=12, vllm=SMALL)
    assert vllm_settings(rollout, 5) == VLLMSettings(
        max_model_len=42, kv_cache_gib=0.05, max_num_seqs=4, eager=True, probe_tolerance=0.1, seed=5
    )
    longer = RolloutSection(engine="vllm", max_prompt_length=30, max_completion_length=12, vllm={"max_model_len": 50})
    assert vllm_settings(longer).max_model_len == 50


def test_auto_says_when_vllm_could_not_tell_what_is_asked_for(caplog):
    config = PPOConfig(
        num_iterations=100, importance_sampling_correction="token", rollout={"temperature": 0.7, "top_p": 0.9}
    )
    assert config.beyond_vllm
    with caplog.at_level(logging.INFO):
        where = {"accelerator": make_accelerator(), "output_dir": Path()}
        engine = training_engine(config, ppo_case.policy(), 0, seed=1, **where)
    assert isinstance(engine, HFEngine) and engine.shares_module and engine.batch_size == 64
    assert caplog.messages == [
        "rollout engine: auto takes HF generate, because importance_sampling_correction needs probabilities before "
        "truncation, which vLLM tells at temperature 1 alone"
    ]


@pytest.mark.needs("vllm")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vllm", "vllm_server"])  # to judge a model nobody needs a server beside
def test_vllm_samples_with_the_weights_that_the_model_has_now(kind):
    model = build("qwen2-tied")
    rollout = RolloutSection(engine=kind, max_prompt_length=30, max_completion_length=12, vllm=SMALL)
    prompts, greedy = [[5, 9, 100], [40, 8, 7, 6, 33]], SamplingParams(temperature=0.0, max_new_tokens=12)
    expected = HFEngine(model, pad_token_id=0).generate(prompts, greedy)
    engine = sampling_engine(rollout, model, 0, seed=1)
    try:
        assert isinstance(engine, VLLMEngine)
        found = engine.generate(prompts, greedy)
    finally:
        engine.close()
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
