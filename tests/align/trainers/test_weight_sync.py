"""Engines with weights of their own sample with the policy's in every phase, and a push that went wrong is noticed."""

import copy
import re

import pytest
import torch

from align.runs.errors import TrainingError
from align.trainers.ppo import make_accelerator
from rollouts.protocol import SamplingParams
from rollouts.scripted import ScriptedEngine
from tests.align.trainers import ppo_case
from tests.align.trainers.own_engines import (
    KINDS,
    Adapting,
    Failing,
    Forgetful,
    Greedy,
    Own,
    Skipping,
    StaleAdapter,
    StaleCache,
    policy_of,
)


def trained(history):
    cost = ("seconds", "tokens_per", "memory", "engine/probe")
    return [{name: v for name, v in line.items() if not name.startswith(cost)} for line in history]


def agrees(trainer) -> bool:
    """Whether the engine's greedy reply is the policy's."""
    prompt = [5, 9, 100, 7, 30]
    reply = trainer.engine.generate([prompt], SamplingParams(temperature=0, max_new_tokens=12))[0]
    assert reply.weight_version == trainer.policy_version
    return reply.token_ids == Greedy.ids(trainer.policy.raw, prompt, 12)


def test_training_is_bit_for_bit_that_of_an_engine_on_the_policy_itself(tmp_path):
    options = {"num_iterations": 3, "critic_warmup_steps": 3, "eval_prompts": ppo_case.prompts(3), "ema_decay": 0.9}
    options |= {"evaluation": {"every_steps": 1, "save_best": True}, "eval_data": ({"path": "unused"},)}
    shared = ppo_case.trainer(tmp_path / "shared", **options)
    own = ppo_case.trainer(tmp_path / "own", engine=Own(), **options)
    assert shared.weight_sync.sampled_modules == [shared.policy.module] and own.weight_sync.sampled_modules == []
    shared.train()
    own.train()
    assert all(torch.equal(a, b) for a, b in zip(shared.policy.parameters, own.policy.parameters, strict=True))
    assert trained(shared.state.log_history) == trained(own.state.log_history)
    assert shared.state.best_global_step == own.state.best_global_step
    lines = [line for line in own.state.log_history if "policy/loss" in line]
    assert all(line["engine/probe_max"] < 1e-4 and 0 < line["seconds/sync"] < line["seconds/update"] for line in lines)
    assert not any("seconds/sync" in line for line in shared.state.log_history)


TIED = [kind for kind in KINDS if kind != "saved"]  # a saved head is tied to nothing
TRIED = [(kind, False) for kind in KINDS] + [(kind, True) for kind in TIED]
QUICK = (("full", False), ("lora", False), ("all_linear", True))
TRIED = [pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in TRIED]


@pytest.mark.parametrize(("kind", "tied"), TRIED)
def test_the_engine_says_what_the_policy_says(tmp_path, kind, tied):
    engine = Own(ppo_case.policy(99, tie_word_embeddings=tied))
    trainer = ppo_case.trainer(tmp_path, policy_model=policy_of(kind, tie_word_embeddings=tied), engine=engine)
    trainer.weight_sync.push_if_new(trainer.policy_version)
    assert agrees(trainer)
    before = engine.generate([[5, 9]], SamplingParams(temperature=0, max_new_tokens=12))[0].token_ids
    with torch.no_grad():
        for parameter in trainer.policy.parameters:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    trainer.learner.policy_steps.value += 1
    assert trainer.weight_sync.push(trainer.policy_version)["engine/probe_max"] < 1e-4
    assert agrees(trainer)
    assert engine.generate([[5, 9]], SamplingParams(temperature=0, max_new_tokens=12))[0].token_ids != before
    figures = trainer.train()
    assert figures.global_step == 2 and agrees(trainer)


def test_the_first_push_is_told_in_words(tmp_path, caplog):
    trainer = ppo_case.trainer(tmp_path, engine=Own())
    with caplog.at_level("INFO", logger="align.trainers.ppo.weight_sync"):
        trainer.weight_sync.push_if_new(trainer.policy_version)
    said = r"the engine has the policy's weights after \d+\.\d s; its log-probabilities differ from the trainer's by "
    assert re.fullmatch(said + r"at most [-\de.]+ nats", caplog.messages[-1])


def test_adapters_go_over_alone_after_the_base(tmp_path):
    start = policy_of("lora")
    engine = Adapting(policy_of("lora", 98))
    trainer = ppo_case.trainer(tmp_path, policy_model=copy.deepcopy(start), engine=engine, save_steps=1)
    trainer.train()
    assert engine.pushes == ["base", "adapter", "adapter", "adapter"] and agrees(trainer)
    again = Adapting(policy_of("lora", 97))
    resumed = ppo_case.trainer(tmp_path, policy_model=start, engine=again, save_steps=1)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoints" / "step-1")
    assert again.pushes == ["base", "adapter", "adapter"] and agrees(resumed)
    assert all(torch.equal(a, b) for a, b in zip(trainer.policy.parameters, resumed.policy.parameters, strict=True))


@pytest.mark.slow
def test_a_resumed_run_and_a_look_before_training_have_the_weights(tmp_path):
    options = {"save_steps": 1, "eval_prompts": ppo_case.prompts(3)}
    whole = ppo_case.trainer(tmp_path, engine=Own(), **options)
    look = ppo_case.trainer(tmp_path / "shared", **options).evaluate()
    assert whole.evaluate() == look
    whole.train()
    again = ppo_case.trainer(tmp_path, engine=Own(), **options)
    again.load_checkpoint(tmp_path / "checkpoints" / "step-1")
    assert agrees(again)
    again.train()
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters, again.policy.parameters, strict=True))


@pytest.mark.parametrize(
    ("engine", "kind", "said"),
    [
        (Skipping, "full", "the engine holds other weights"),
        (Forgetful, "full", "the engine holds other weights"),
        (StaleCache, "full", "prefix cache"),
        (StaleAdapter, "lora", "stale adapter"),
    ],
)
def test_the_probe_catches(tmp_path, engine, kind, said):
    broken = engine(policy_of(kind, 0)) if kind == "lora" else engine()
    trainer = ppo_case.trainer(tmp_path, policy_model=policy_of(kind), engine=broken)
    with pytest.raises(TrainingError) as error:
        trainer.train()
    steps = trainer.policy_version
    for words in (f"push of step {steps}'s weights", said, "(iteration 1)", "float32 and float32", "saved in"):
        assert words in str(error.value)
    folder = tmp_path / "failed" / "step-0"
    assert str(folder) in str(error.value) and (folder / "policy" / "model.safetensors").is_file()


def test_the_probe_catches_an_engine_that_never_got_weights(tmp_path):
    class Never(Skipping):
        after = 0

    trainer = ppo_case.trainer(tmp_path, engine=Never())
    with pytest.raises(TrainingError, match=r"step 0's weights, .* the state before it is saved"):
        trainer.train()
    with pytest.raises(TrainingError, match="step 0's weights"):
        trainer.evaluate(ppo_case.prompts(2))


def test_a_push_that_breaks_off_stops_the_run_and_leaves_the_engine_unusable(tmp_path):
    trainer = ppo_case.trainer(tmp_path, engine=Failing())
    with pytest.raises(TrainingError, match=r"^the engine died \(iteration 1\); the models after its update are saved"):
        trainer.train()
    assert trainer.weight_sync.pushed_version is None  # the next push sends everything


def test_precisions_and_an_own_tolerance(tmp_path):
    trainer = ppo_case.trainer(
        tmp_path, engine=Own(autocast_dtype=torch.bfloat16), accelerator=make_accelerator("bf16"), num_iterations=1
    )
    trainer.train()
    assert trainer.state.log_history[-1]["engine/probe_max"] < 3e-2  # bfloat16's rounding, of rows laid otherwise
    mixed = ppo_case.trainer(tmp_path, engine=Own(ppo_case.policy(9).bfloat16()), num_iterations=1)
    mixed.train()
    assert 1e-4 < mixed.state.log_history[-1]["engine/probe_max"] < 0.5
    mixed.engine.settings = type("Settings", (), {"probe_tolerance": 1e-4, "max_model_len": 64})()
    with pytest.raises(TrainingError, match=r"\(0.0001 allowed; trainer and engine compute in float32 and bfloat16\)"):
        mixed.weight_sync.push(mixed.policy_version)


def test_the_policy_and_the_generators_are_left_alone(tmp_path):
    trainer = ppo_case.trainer(tmp_path, engine=Own(), policy_model=policy_of("dora"))
    before = [parameter.clone() for parameter in trainer.policy.raw.parameters()]
    state, modes = torch.get_rng_state(), [module.training for module in trainer.policy.raw.modules()]
    trainer.weight_sync.push(trainer.policy_version)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in trainer.policy.raw.modules()]
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.policy.raw.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in trainer.policy.raw.parameters())


def test_engines_that_share_or_cannot_score_are_not_probed(tmp_path):
    shared = ppo_case.trainer(tmp_path)
    shared.learner.policy_steps.value = 3
    assert shared.weight_sync.push(shared.policy_version) == {} and shared.engine.weight_version == 3
    scripted = ScriptedEngine(lambda prompt, number: [3, 4, 258])
    scripted.shares_module = False
    trainer = ppo_case.trainer(tmp_path, engine=scripted)
    assert set(trainer.weight_sync.push(trainer.policy_version)) == {"seconds/sync"}
