"""States are right where they are read, their gradients too, and the last MLP works nowhere else."""

import pytest
import torch

from reward.last_layer import last_mlp_only_at
from reward.model import RewardModel
from tests.align.trainers.test_causal_forward import MODELS, make

IDS = torch.arange(1, 31).reshape(10, 3)
READ = torch.tensor([1, 4, 9, 10, 15, 16, 9, 23, 28, 17])  # 9 twice


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_read_and_its_gradients_are_those_of_a_whole_pass(name):
    model = make(name).base_model
    whole = model(input_ids=IDS, use_cache=False).last_hidden_state.flatten(0, 1)[READ]
    expected = gradients(model, whole.sin().sum())
    with last_mlp_only_at(model, IDS.shape, READ):
        found = model(input_ids=IDS, use_cache=False).last_hidden_state.flatten(0, 1)[READ]
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients(model, found.sin().sum()), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("pooling", "rows"), [("end_token", 10), ("last_token", 10), ("mean", 30)])
def test_a_reward_model_asks_it_for_a_row_a_score(pooling, rows):
    model, seen = RewardModel(make("qwen3").base_model, pooling=pooling).double(), []
    model.backbone.layers[-1].mlp.gate_proj.register_forward_hook(
        lambda _, args, out: seen.append(args[0].shape[:-1].numel())
    )
    mask = torch.ones_like(IDS)
    scores = model(IDS, mask)
    assert seen[-1] == rows
    torch.testing.assert_close(model(IDS, mask, with_states=True)[0], scores, rtol=1e-12, atol=1e-14)
    assert seen[-1] == 30


def test_layers_that_are_computed_again_are_left_alone():
    model = make("qwen3").base_model.train()
    model.gradient_checkpointing_enable()
    with last_mlp_only_at(model, IDS.shape, READ):
        states = model(input_ids=IDS, use_cache=False).last_hidden_state
    states.sum().backward()
    assert bool(states[0, 0].any())
