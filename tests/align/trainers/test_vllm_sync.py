"""Real vLLM: after a push it says greedily what the policy says, and the probe catches a push that went wrong."""

import copy
import os

import pytest
import torch
from peft import LoraConfig, get_peft_model

from align.runs.errors import TrainingError
from rollouts.protocol import SamplingParams
from tests.align.trainers import ppo_case
from tests.align.trainers.own_engines import Greedy
from tests.rollouts.vllm.models import build, settings

pytestmark = [pytest.mark.needs("vllm"), pytest.mark.slow]
PROMPT = [5, 9, 100, 7, 30]
ADAPTERS = {
    "lora": {"target_modules": ["q_proj", "o_proj", "up_proj"]},
    "dora": {"target_modules": ["q_proj", "o_proj", "up_proj"], "use_dora": True},
    "all": {"target_modules": "all-linear", "use_rslora": True},
    "attention": {"target_modules": ["q_proj", "v_proj"]},
}


def policy(family: str, kind: str = "full", seed: int = 0) -> torch.nn.Module:
    model = build(family, seed=seed, vocab_size=259)  # as the critic and the tokenizer have
    if kind == "full":
        return model
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, **ADAPTERS[kind]))


def disturb(trainer, seed: int = 0) -> None:
    """Other weights, as after an update."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer.policy.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    trainer.learner.policy_steps.value += 1


def said(engine) -> tuple[int, ...]:
    return engine.generate([PROMPT], SamplingParams(temperature=0, max_new_tokens=16))[0].token_ids


@pytest.fixture(scope="module")
def engines():
    """Engines by (family, takes_adapters); one at a time: a dense one leaves no groups that a MoE's could share."""
    from rollouts.vllm.engine import VLLMEngine

    assert os.environ.get("OMP_NUM_THREADS"), "two threads that spin are ten times slower on a busy machine"
    held = {}

    def get(family: str, takes_adapters: bool = False):
        key = (family, takes_adapters)
        if key not in held:
            while held:
                held.popitem()[1].close()
            model = policy(family, "lora" if takes_adapters else "full", seed=50)
            held[key] = VLLMEngine(model, settings(), takes_adapters=takes_adapters)
        return held[key]

    yield get
    while held:
        held.popitem()[1].close()


def trainer_of(folder, engine, model):
    return ppo_case.trainer(folder, policy_model=model, engine=engine, num_iterations=1)


def test_the_probe_catches_an_adapter_that_stayed(tmp_path, engines, monkeypatch):
    engine = engines("qwen2-untied", True)
    trainer = trainer_of(tmp_path, engine, policy("qwen2-untied", "lora"))
    disturb(trainer)
    trainer.weight_sync.push(trainer.policy_version)
    disturb(trainer, seed=1)
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="stale adapter"):
        patch.setattr(engine, "update_adapter", lambda config, stream, version: None)
        trainer.weight_sync.push(trainer.policy_version)
    assert trainer.weight_sync.push(trainer.policy_version)["engine/probe_max"] < 1e-3


@pytest.mark.parametrize(
    ("family", "kind", "takes_adapters"),
    [  # in this order an engine is built once, from the test above to those below
        ("qwen2-untied", "lora", True),
        ("qwen2-tied", "full", False),
        ("qwen2-tied", "lora", False),
        ("qwen3-moe", "full", False),
        ("qwen3-moe", "attention", False),
        ("qwen2-untied", "full", False),
        ("qwen2-untied", "lora", False),
        ("qwen2-untied", "dora", False),
        ("qwen2-untied", "all", False),
    ],
)
def test_vllm_says_what_the_policy_says_after_a_push(tmp_path, engines, family, kind, takes_adapters):
    engine = engines(family, takes_adapters)
    trainer = trainer_of(tmp_path, engine, policy(family, kind))
    assert trainer.weight_sync.push(trainer.policy_version)["engine/probe_max"] < 1e-3
    before = said(engine)
    assert before == Greedy.ids(trainer.policy.raw, PROMPT, 16)
    disturb(trainer)
    assert Greedy.ids(trainer.policy.raw, PROMPT, 16) != before and said(engine) == before
    trainer.weight_sync.push_if_new(trainer.policy_version)
    assert said(engine) == Greedy.ids(trainer.policy.raw, PROMPT, 16)
    trainer.train()
    assert said(engine) == Greedy.ids(trainer.policy.raw, PROMPT, 16)
    line = trainer.state.log_history[-1]
    assert line["engine/probe_max"] < 1e-3 and line["seconds/sync"] > 0
    assert line["engine/logp_diff_max"] < 1e-3


def test_the_probe_catches_a_push_that_was_left_out(tmp_path, engines, monkeypatch):
    engine = engines("qwen2-untied")
    trainer = trainer_of(tmp_path, engine, policy("qwen2-untied"))
    trainer.weight_sync.push(trainer.policy_version)
    disturb(trainer)
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=r"step 1's weights.*holds other weights"):
        patch.setattr(engine, "update_weights", lambda stream, version: None)
        trainer.weight_sync.push(trainer.policy_version)
    assert trainer.weight_sync.push(trainer.policy_version)["engine/probe_max"] < 1e-3


@pytest.mark.parametrize("left_out", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.k_proj.bias"])
def test_the_probe_catches_one_tensor_that_was_left_out(tmp_path, engines, monkeypatch, left_out):
    engine = engines("qwen2-untied")
    trainer = trainer_of(tmp_path, engine, policy("qwen2-untied"))
    old = copy.deepcopy(dict(trainer.policy.raw.named_parameters())[left_out])
    disturb(trainer)
    if left_out.endswith("k_proj.bias"):  # a key's bias shifts all scores of a query alike, but for the rotation
        with torch.no_grad():
            dict(trainer.policy.raw.named_parameters())[left_out].add_(1.0)
    whole = engine.update_weights

    def partly(stream, version):
        whole(((name, old if name == left_out else tensor) for name, tensor in stream), version)

    monkeypatch.setattr(engine, "update_weights", partly)
    with pytest.raises(TrainingError, match="holds other weights"):
        trainer.weight_sync.push(trainer.policy_version)


def test_the_probe_catches_a_prefix_cache_of_older_weights(tmp_path, engines, monkeypatch):
    engine = engines("qwen2-untied")
    trainer = trainer_of(tmp_path, engine, policy("qwen2-untied"))
    trainer.weight_sync.push(trainer.policy_version)
    disturb(trainer)
    monkeypatch.setattr(engine._local, "_forget", lambda: None)
    with pytest.raises(TrainingError, match=r"score a sequence alike .* prefix cache"):
        trainer.weight_sync.push(trainer.policy_version)
    monkeypatch.undo()
    assert trainer.weight_sync.push(trainer.policy_version)["engine/probe_max"] < 1e-3


@pytest.mark.needs("bitsandbytes")
def test_a_4bit_policy_is_pushed_in_the_dtype_it_computes_in(tmp_path):
    """The merged weights are rounded to bfloat16 once more than what the trainer computes with."""
    from transformers import AutoModelForCausalLM

    from reward.adapter import keep_unpacked, quantization_4bit
    from rollouts.vllm.engine import VLLMEngine

    build("qwen2-untied", vocab_size=259, initializer_range=0.1).bfloat16().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.bfloat16, quantization_config=quantization_4bit()
    )
    keep_unpacked(base)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, **ADAPTERS["all"]))
    engine = VLLMEngine(model, settings())
    try:
        trainer = trainer_of(tmp_path, engine, model)
        first = trainer.weight_sync.push(trainer.policy_version)["engine/probe_max"]
        stale = Greedy.ids(model, PROMPT, 3)
        assert said(engine)[:3] == stale
        disturb(trainer)
        assert max(first, trainer.weight_sync.push(trainer.policy_version)["engine/probe_max"]) < 0.5
        assert said(engine)[:3] == Greedy.ids(model, PROMPT, 3) != stale
    finally:
        engine.close()


def test_what_the_trainer_draws_is_the_same_whatever_drafts(tmp_path):
    """Of exact runs: vLLM in bfloat16 drafts for a trainer in float32, and both end with the same weights."""
    learnt = {}
    for name in ("hf", "vllm"):
        vllm = {"dtype": "bfloat16", "kv_cache_gib": 0.05, "probe_tolerance": 5.0}
        rollout = {"engine": name, "exact": True, "temperature": 0.9, "max_completion_length": 20, "vllm": vllm}
        trainer = ppo_case.trainer(
            tmp_path / name,
            policy_model=policy("qwen2-tied"),
            rollout=rollout | {"max_prompt_length": 40},
            micro_batch_size=1,
            eval_prompts=ppo_case.prompts(3),
        )
        try:
            figures = [trainer.step(), trainer.step(), trainer.evaluate()]
        finally:
            trainer.engine.close()
        assert [step["engine/logp_diff_max"] for step in figures[:2]] == [0.0, 0.0]
        learnt[name] = [parameter.detach().clone() for parameter in trainer.policy.parameters], figures
    assert all(torch.equal(one, other) for one, other in zip(learnt["hf"][0], learnt["vllm"][0], strict=True))
    for one, other in zip(learnt["hf"][1], learnt["vllm"][1], strict=True):
        same = [key for key in one if not key.startswith(("seconds", "tokens_per", "memory"))]
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
