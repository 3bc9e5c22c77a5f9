import pytest
import torch
from accelerate import Accelerator
from torch import nn

from align.recipe.fields import OptimSection
from align.trainers.optimization import TrainedModel, make_optimizer, mark_last, total_norm


def section(**changes) -> OptimSection:
    return OptimSection(**{"learning_rate": 0.1, "weight_decay": 0.3, "max_grad_norm": 0.5} | changes)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_decay_spares_biases_and_norms_and_nothing_frozen_is_optimised():
    optimizer = make_optimizer(Net(), section(adam_beta2=0.9, adam_epsilon=1e-3))
    groups = [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [(1, 0.3), (3, 0.0)]
    assert optimizer.defaults["betas"] == (0.9, 0.9) and optimizer.defaults["eps"] == 1e-3


def test_one_adamw_step_by_hand():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 2.0)
    model = TrainedModel(net, section(weight_decay=0.0, max_grad_norm=1e9), Accelerator(), total_steps=4)
    net.weight.grad = torch.tensor([[3.0]])
    model.step()
    assert float(net.weight) == pytest.approx(2.0 - 0.1)  # the first step of Adam has the size of the learning rate
    assert net.weight.grad is None


def test_clip_gives_the_norm_before():
    net = nn.Linear(2, 1, bias=False)
    model = TrainedModel(net, section(), Accelerator(), total_steps=4)
    net.weight.grad = torch.tensor([[3.0, 4.0]])
    assert float(model.clip()) == pytest.approx(5.0)
    assert torch.allclose(net.weight.grad, torch.tensor([[0.3, 0.4]]), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "warmup", "expected"),
    [
        ("constant", 0, [0.1, 0.1, 0.1]),
        ("constant_with_warmup", 2, [0.0, 0.05, 0.1]),
        ("linear", 0, [0.1, 0.075, 0.05]),
        ("cosine_with_min_lr", 0, [0.1, 0.1 * (0.9 * (2 + 2**0.5) / 4 + 0.1), 0.1 * 0.55]),
    ],
)
def test_schedules_advance_once_an_optimizer_step(kind, warmup, expected):
    net = nn.Linear(1, 1)
    model = TrainedModel(net, section(lr_scheduler_type=kind, warmup_steps=warmup), Accelerator(), total_steps=4)
    rates = []
    for _ in range(3):
        rates.append(model.learning_rate)
        net.weight.grad, net.bias.grad = torch.ones(1, 1), torch.ones(1)
        model.step()
    assert rates == pytest.approx(expected)


def test_small_helpers():
    assert list(mark_last([7, 8])) == [(False, 7), (True, 8)]
    assert float(total_norm([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])) == 5.0
