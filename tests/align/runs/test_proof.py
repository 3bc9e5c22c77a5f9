"""Steps that are not made, or move nothing, are errors; those that may move nothing are not."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import GradientState
from torch import nn
from transformers import Adafactor

from align.runs.errors import TrainingError
from align.runs.proof import StepProof, reset_process_state


def prepared(dtype=torch.float32, rate=1e-3, **options):
    torch.manual_seed(0)
    net = nn.Linear(4, 3).to(dtype)
    optimizer = Accelerator().prepare(torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.0, **options))
    return net, optimizer, StepProof(optimizer, "net")


def step(net, optimizer, proof, scale=1.0):
    (net(torch.ones(2, 4, dtype=net.weight.dtype)).sum() * scale).backward()
    step_made(optimizer, proof)


def step_made(optimizer, proof):
    proof.before()
    optimizer.step()
    proof.after()


def test_a_step_that_moves_weights_is_proven_once():
    net, optimizer, proof = prepared()
    step(net, optimizer, proof)
    assert proof.proven and proof._witnesses == []


def test_a_step_that_accelerate_leaves_out_is_an_error_and_a_reset_mends_it():
    net, optimizer, proof = prepared()
    GradientState()._set_sync_gradients(False)
    try:
        with pytest.raises(TrainingError, match="optimizer step of net was not made"):
            step(net, optimizer, proof)
    finally:
        reset_process_state()
    step(net, optimizer, proof)
    assert proof.proven


def test_a_later_step_that_is_left_out_is_an_error_too():
    net, optimizer, proof = prepared()
    step(net, optimizer, proof)
    GradientState()._set_sync_gradients(False)
    try:
        with pytest.raises(TrainingError, match="was not made"):
            step(net, optimizer, proof)
    finally:
        reset_process_state()


def test_updates_that_rounding_takes_are_an_error():
    net, optimizer, proof = prepared(torch.bfloat16, rate=1e-9)
    nn.init.constant_(net.weight, 1.0)
    nn.init.constant_(net.bias, 1.0)
    with pytest.raises(TrainingError, match=r"net moved no weight \(bfloat16, learning_rate 1e-09\)"):
        step(net, optimizer, proof)


def test_one_small_weight_that_moves_is_enough():
    """1 does not move by 1e-6 in bfloat16, whose next number below is 0.996; 1e-5 does."""
    net, optimizer, proof = prepared(torch.bfloat16, rate=1e-6)
    nn.init.constant_(net.weight, 1.0)
    nn.init.constant_(net.bias, 1.0)
    with torch.no_grad():
        net.weight[1, 2] = 1e-5
    step(net, optimizer, proof)
    assert proof.proven


@pytest.mark.parametrize(("rate", "scale"), [(0.0, 1.0), (1e-3, 0.0)])
def test_a_step_of_no_rate_or_no_gradient_proves_nothing_and_is_no_error(rate, scale):
    net, optimizer, proof = prepared(rate=rate)
    step(net, optimizer, proof, scale)
    assert not proof.proven
    optimizer.zero_grad()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    step(net, optimizer, proof)
    assert proof.proven


def test_a_reset_undoes_foreign_accumulation():
    mine = Accelerator()
    Accelerator(gradient_accumulation_steps=8)
    assert mine.gradient_accumulation_steps == 8  # of the whole process
    reset_process_state(mine)
    assert mine.gradient_accumulation_steps == 1


@pytest.mark.parametrize("fused", [True, False])
def test_an_overflow_that_a_loss_scale_skips_is_no_error(fused):
    """A fused optimizer is called for it all the same, and accelerate does not say that it was skipped."""
    net, scaler = nn.Linear(4, 3), torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = AcceleratedOptimizer(torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused), scaler=scaler)
    proof, proven = StepProof(optimizer, "net"), []
    for size in (1e38, 1.0):
        scaler.scale(net(torch.ones(2, 4)).sum() * size).backward()
        scaler.unscale_(optimizer.optimizer)
        step_made(optimizer, proof)
        proven.append(proof.proven)
        optimizer.zero_grad()
    assert proven == [False, True]


def test_an_optimizer_whose_eps_is_a_pair_is_proven():
    net = nn.Linear(4, 3)
    optimizer = Adafactor(net.parameters(), lr=1e-3, relative_step=False, scale_parameter=False)
    proof = StepProof(optimizer, "net")
    net(torch.ones(2, 4)).sum().backward()
    step_made(optimizer, proof)
    assert proof.proven
