"""vLLM in this process against transformers, on one tiny model: what it samples, what a push changes, what it leaves.

Other models and settings, which need engines of their own, are in the slow tests.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from rollouts.errors import RolloutError
from rollouts.hf import HFEngine
from rollouts.protocol import Engine, SamplingParams, Scoring
from rollouts.vllm.engine import VLLMEngine
from rollouts.vllm.local import why_not_beside
from tests.families import FAMILIES, SERVER_ALONE, model_of
from tests.rollouts.vllm.models import VOCABULARY, build, logits_after, random_prompts, settings, weights

pytestmark = pytest.mark.needs("vllm")
LONG = [3 * at % VOCABULARY for at in range(200)]  # longer than a block of the cache, 128
GREEDY = SamplingParams(temperature=0, max_new_tokens=24)


def footprint():
    """What sampling and starting must leave as it is."""
    return {
        "environment": dict(os.environ),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "set_threads": torch.set_num_threads,
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "warnings": list(warnings.filters),
        "handlers": (list(logging.root.handlers), logging.root.level, logging.getLogRecordFactory()),
        "hook": sys.excepthook,
        "frozen": gc.get_freeze_count(),
        "distributed": torch.distributed.is_initialized(),
    }


@pytest.fixture(scope="module")
def started():
    """(model, engine with its weights, the process's footprint before and after starting)"""
    gc.unfreeze()  # of what tests/conftest.py has frozen some things die meanwhile
    model = build("qwen2-tied")
    before = footprint()
    engine = VLLMEngine(model, settings())
    after = footprint()
    with pytest.raises(RolloutError, match="has no weights yet"):
        engine.generate([[1]], GREEDY)
    engine.update_weights(weights(model), 1)
    yield model, engine, before, after
    engine.close()
    with pytest.raises(RolloutError, match="closed"):
        engine.generate([[1]], GREEDY)


@pytest.fixture
def engine(started):
    model, engine, *_ = started
    engine.update_weights(weights(model), 1)
    return engine


@pytest.fixture
def model(started):
    return started[0]


def test_it_is_an_engine_and_leaves_the_process_alone(started):
    model, engine, before, after = started
    assert isinstance(engine, Engine) and isinstance(engine, Scoring) and not engine.shares_module
    assert after == before
    here = footprint()
    engine.update_weights(weights(model), 1)
    engine.generate([[1, 2]], SamplingParams(max_new_tokens=4))
    engine.token_logprobs([[1, 2, 3]])
    engine.sleep()
    engine.wake()
    assert footprint() == here
    assert not torch.distributed.is_initialized() and Accelerator(cpu=True).num_processes == 1


def test_a_model_that_vllm_runs_by_transformers_own_class_is_refused_by_name(started):
    found = {}
    for made in FAMILIES.values():
        with torch.device("meta"):
            model = model_of(made, VOCABULARY)
        found[made.model] = why_not_beside(model)
        if made.model == "SmolLM3":
            with pytest.raises(RolloutError, match=r"for smollm3 models .*: set ppo.rollout.engine: vllm_server or hf"):
                VLLMEngine(model, settings())
    assert {name for name, why in found.items() if why} == set(SERVER_ALONE)


def test_memory_that_does_not_come_back_is_told(engine, monkeypatch):
    def full(tags):
        raise RuntimeError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine._local, "_asleep", {"kv_cache"})  # a CPU's never sleeps
        patch.setattr(engine._local._llm, "wake_up", full)
        with pytest.raises(RolloutError, match=r"memory back .*CUDA out of memory.*lower ppo.rollout.vllm.memory_sha"):
            engine.generate([[1]], GREEDY)
    assert engine.generate([[1]], GREEDY)


def test_greedy_replies_are_those_of_transformers(model, engine):
    prompts = [*random_prompts(20), LONG]
    ours = engine.generate(prompts, GREEDY)
    theirs = HFEngine(model, 0).generate(prompts, GREEDY)
    assert [reply.token_ids for reply in ours] == [reply.token_ids for reply in theirs]
    assert {reply.logprobs for reply in ours} == {(0.0,) * 24} and {reply.full_logprobs for reply in ours} == {None}


def test_a_reply_that_is_heard_is_the_one_that_is_generated(engine):
    for params in (GREEDY, SamplingParams(max_new_tokens=24, seed=3, top_p=0.9, stop_token_ids=(5, 6, 7))):
        heard: list[int] = []
        (said,) = engine.generate([LONG], params)
        assert engine.stream(LONG, params, heard.append) == said
        assert tuple(heard) == said.token_ids

    def stop(token):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.stream(LONG, GREEDY, stop)
    assert len(engine.generate([LONG], GREEDY)[0].token_ids) == 24  # and the interrupted one has gone


def test_greedy_replies_to_a_prompt_are_equal(engine):
    once = engine.generate([LONG, [5]], GREEDY)
    twice = engine.generate([LONG, [5]], replace(GREEDY, n=2))
    assert twice == [once[0], once[0], once[1], once[1]]


def test_a_push_changes_what_long_prompts_become_too(model, engine):
    other = build("qwen2-tied", seed=1)
    old = engine.generate([LONG, LONG], GREEDY)
    engine.update_weights(weights(other), 2)
    new = engine.generate([LONG, LONG], GREEDY)
    assert [reply.token_ids for reply in new] == [r.token_ids for r in HFEngine(other, 0).generate([LONG] * 2, GREEDY)]
    assert new[0].token_ids != old[0].token_ids and {reply.weight_version for reply in new} == {2}
    engine.update_weights(weights(model), 3)
    assert [reply.token_ids for reply in engine.generate([LONG, LONG], GREEDY)] == [reply.token_ids for reply in old]


def test_scores_are_those_of_the_models_logits(model, engine):
    sequences = [LONG, [5], [9, 8, 7], *random_prompts(5, seed=3)]
    for ids, scores in zip(sequences, engine.token_logprobs(sequences), strict=True):
        wanted = torch.log_softmax(logits_after(model, ids, 1), -1)
        assert scores == pytest.approx(wanted[range(len(ids) - 1), ids[1:]].tolist(), abs=1e-4)


def test_log_probabilities_at_temperature_1(model, engine):
    prompts = random_prompts(6, seed=4)
    for params, drawn in (
        (SamplingParams(n=2, max_new_tokens=12, seed=1), True),
        (SamplingParams(n=2, max_new_tokens=12, seed=1, top_p=0.8), False),
        (SamplingParams(n=2, max_new_tokens=12, seed=1, min_new_tokens=12, stop_token_ids=(3,)), False),
    ):
        for at, reply in enumerate(engine.generate(prompts, params)):
            prompt = prompts[at // 2]
            full = torch.log_softmax(logits_after(model, [*prompt, *reply.token_ids], len(prompt)), -1)
            wanted = full[range(len(reply.token_ids)), reply.token_ids].tolist()
            assert reply.full_logprobs == pytest.approx(wanted, abs=1e-4)
            assert reply.logprobs == (reply.full_logprobs if drawn else None)
    reply = engine.generate([[1]], SamplingParams(temperature=0.7, max_new_tokens=2))[0]
    assert reply.logprobs is None and reply.full_logprobs is None


def test_seeds_fix_replies_whatever_runs_beside_them(engine):
    prompts = random_prompts(12, seed=5)
    params = SamplingParams(n=3, max_new_tokens=12, seed=5)
    first = engine.generate(prompts, params)
    assert engine.generate(prompts, params) == first
    assert len({reply.token_ids for reply in first}) == len(first)  # neither siblings nor prompts repeat one another
    assert engine.generate(prompts[:1], params) == first[:3]  # its own place alone counts
    assert engine.generate(prompts, SamplingParams(n=3, max_new_tokens=12, seed=6)) != first
    unseeded = SamplingParams(n=3, max_new_tokens=12)
    assert engine.generate(prompts, unseeded) != engine.generate(prompts, unseeded)


def test_stop_ids_end_a_reply_and_are_held_back(engine):
    stops = tuple(range(0, VOCABULARY, 2))
    replies = engine.generate([[1, 2]], SamplingParams(n=20, max_new_tokens=9, stop_token_ids=stops, seed=0))
    assert {reply.finish_reason for reply in replies} == {"stop"}
    assert all([token in stops for token in r.token_ids] == [False] * (len(r.token_ids) - 1) + [True] for r in replies)
    held = SamplingParams(n=20, max_new_tokens=9, min_new_tokens=4, stop_token_ids=stops, seed=0)
    replies = engine.generate([[1, 2]], held)
    assert min(len(reply.token_ids) for reply in replies) >= 4
    assert not any(token in stops for reply in replies for token in reply.token_ids[:3])


def test_the_end_in_the_models_configuration_neither_ends_a_reply_nor_is_held_back(model, engine):
    end = model.config.eos_token_id
    prompt = max(
        random_prompts(100, seed=6), key=lambda ids: logits_after(model, [*ids, 0], len(ids))[0].softmax(-1)[end]
    )
    share = float(logits_after(model, [*prompt, 0], len(prompt))[0].softmax(-1)[end])
    replies = engine.generate([prompt], SamplingParams(n=300, max_new_tokens=3, min_new_tokens=3, seed=1))
    drawn = sum(reply.token_ids[0] == end for reply in replies)
    assert abs(drawn - 300 * share) < 4 * (300 * share * (1 - share)) ** 0.5 and drawn > 5
    assert {len(reply.token_ids) for reply in replies} == {3}


def test_top_k_draws_from_the_likeliest_alone(model, engine):
    replies = engine.generate([LONG[:9]], SamplingParams(n=200, max_new_tokens=1, top_k=3, temperature=2.0, seed=1))
    likeliest = logits_after(model, [*LONG[:9], 0], 9)[0].topk(3).indices.tolist()
    assert {reply.token_ids[0] for reply in replies} == set(likeliest)


def test_wrong_prompts_are_refused_and_no_prompts_are_none(engine):
    for prompts, words in (
        ([[1], []], "prompt 1 is empty"),
        ([[1] * 290], "prompt 0 has 290 tokens, but beside max_new_tokens 24 only 276 fit"),
        ([[VOCABULARY]], "outside the model's vocabulary of 300"),
    ):
        with pytest.raises(RolloutError, match=words):
            engine.generate(prompts, GREEDY)
    with pytest.raises(RolloutError, match="sequence 0 has 301 tokens"):
        engine.token_logprobs([[1] * 301])
    assert len(engine.token_logprobs([[1] * 300])[0]) == 299
    with pytest.raises(RolloutError, match="engine: hf"):
        engine.generate([[1]], SamplingParams(return_support=True))
    assert engine.generate([], GREEDY) == [] and engine.token_logprobs([]) == []


def test_a_temperature_that_vllm_would_raise_is_refused(engine):
    with pytest.raises(RolloutError, match=r"at least 0\.01, not at 0\.005"):
        engine.generate([[1]], SamplingParams(temperature=0.005))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_are_an_error(model, engine, temperature):
    broken = {name: tensor.detach().clone() for name, tensor in weights(model)}
    broken["model.norm.weight"].fill_(float("nan"))
    engine.update_weights(broken.items(), 2)
    with pytest.raises(RolloutError, match="not finite"):
        engine.generate([[1, 2]], SamplingParams(temperature=temperature, max_new_tokens=3))


def out_of_memory(*args, **kwargs):
    raise RuntimeError("no room")


def test_a_broken_push_stops_sampling_until_a_whole_one(model, engine, monkeypatch):
    named = dict(weights(model))
    head = next(iter(named))
    wrong = [
        ({name: tensor for name, tensor in named.items() if name != head}, f"'{head}' is missing"),
        (named | {"lm_head.weight": named[head]}, "'lm_head.weight' is not one of the engine's model"),
        (named | {head: named[head][:-1]}, rf"'{head}' is \(299, 64\), expected \(300, 64\)"),
    ]
    whole = engine.generate([LONG], GREEDY)
    for stream, words in wrong:
        with pytest.raises(RolloutError, match=words):
            engine.update_weights(stream.items(), 9)
        with pytest.raises(RolloutError, match="only a part of its last weights"):
            engine.generate([LONG], GREEDY)

    def breaking():
        yield from list(named.items())[:5]
        raise OSError("the gathering rank died")

    with pytest.raises(OSError, match="gathering"):
        engine.update_weights(breaking(), 9)
    with pytest.raises(RolloutError, match="only a part"):
        engine.token_logprobs([[1, 2]])
    engine.update_weights(named.items(), 1)
    assert engine.generate([LONG], GREEDY) == whole
    with (
        monkeypatch.context() as patch,
        pytest.raises(RolloutError, match="new weights: RuntimeError: no room"),
    ):
        patch.setattr(engine._local._llm, "collective_rpc", out_of_memory)
        engine.update_weights(named.items(), 2)
    engine.update_weights(named.items(), 1)
    assert engine.generate([LONG], GREEDY) == whole
