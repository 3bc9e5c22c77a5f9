import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from align.runs.errors import CheckpointError, LaunchError
from align.trainers import sharding
from align.trainers.ppo import make_accelerator
from tests.align.trainers import ppo_case


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "not been tried under DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP2 alone, and the launcher chose version 1"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "--fsdp_version 2"),
    ],
)
def test_what_has_not_been_tried_is_refused(monkeypatch, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=said):
        make_accelerator()


def test_fsdp2_loads_models_whole_and_reduces_in_float32(monkeypatch):
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    plugin = sharding.fsdp_plugin("bf16")
    assert not plugin.cpu_ram_efficient_loading
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.bfloat16, torch.float32, None)
    assert sharding.fsdp_plugin("no").mixed_precision_policy is None
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert sharding.fsdp_plugin("bf16") is None


def test_one_process_is_left_as_it_is():
    model = ppo_case.policy(0)
    before = [parameter.clone() for parameter in model.parameters()]
    frozen, optimizer = sharding.prepare(Accelerator(cpu=True), model)
    assert frozen is model and optimizer is None and not sharding.is_sharded(model)
    with sharding.unsharded(model):
        pass
    assert all(sharding.full(parameter) is parameter for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("tied", [False, True])
def test_weights_come_back_from_their_file(tmp_path, tied):
    model, other = ppo_case.policy(0, tie_word_embeddings=tied), ppo_case.policy(1, tie_word_embeddings=tied)
    state = sharding.gathered_state_dict(model)
    assert ("lm_head.weight" in state) != tied
    save_file(state, tmp_path / "model.safetensors")
    sharding.load_gathered(other, tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("model.norm.weight"), "has no tensor 'model.norm.weight'"),
        (lambda state: state.update({"more": torch.zeros(1)}), "'more' does not fit"),
        (lambda state: state.update({"model.norm.weight": torch.zeros(3)}), "'model.norm.weight' does not fit"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, change, said):
    state = sharding.gathered_state_dict(ppo_case.policy(0))
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        sharding.load_gathered(ppo_case.policy(0), tmp_path / "model.safetensors")
