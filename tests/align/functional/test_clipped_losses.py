import math

import pytest
import torch

from align.functional import policy_loss, value_loss
from tests import oracles

LOG2 = math.log(2)


def figures(stats):
    return {key: figure.item() for key, figure in stats.items()}


def test_policy_loss_by_hand():
    # ratios 2, 2, 1/2, 1/2 and 1 with advantages 1, -1, 1, -1 and 3; cliprange 0.2; a sixth token is masked
    logps = torch.tensor([[LOG2, LOG2, -LOG2, -LOG2, 0.0, math.nan]], dtype=torch.float64, requires_grad=True)
    old = torch.zeros(1, 6, dtype=torch.float64)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 3.0, math.inf]], dtype=torch.float64)
    loss, stats = policy_loss(logps, old, advantages, torch.tensor([[1, 1, 1, 1, 1, 0]]), cliprange=0.2)
    # -1.2 (clipped), 2, -0.5, 0.8 (clipped), -3
    assert loss.item() == pytest.approx(-1.9, rel=1e-14)
    loss.backward()
    # d(-A r)/d logp = -A r where the clip is not active
    assert logps.grad.tolist()[0] == pytest.approx([0.0, 2.0, -0.5, 0.0, -3.0, 0.0], rel=1e-14)
    expected = {
        "clipped": 2.0,
        "approx_kl": 2 * (1 - LOG2) + 2 * (-0.5 + LOG2),
        "ratio": 6.0,
        "ratio_max": 2.0,
        "ratio_min": 0.5,
        "tokens": 5.0,
    }
    assert figures(stats) == pytest.approx(expected, rel=1e-14)


def test_value_loss_by_hand():
    # values 1, 1, 2, 5; old 0, 0, 2, 5; returns 0, 2, 1, 5; clip 0.5; a fifth token is masked
    values = torch.tensor([[1.0, 1.0, 2.0, 5.0, math.nan]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[0.0, 0.0, 2.0, 5.0, math.inf]], dtype=torch.float64)
    returns = torch.tensor([[0.0, 2.0, 1.0, 5.0, -math.inf]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    loss, stats = value_loss(values, old, returns, mask, cliprange_value=0.5)
    # errors 1, 1, 1, 0; of the clipped values 0.5, 0.5, 2, 5: 0.25, 2.25, 1, 0; the larger: 1, 2.25, 1, 0
    assert loss.item() == 0.5 * 4.25
    loss.backward()
    assert values.grad.tolist() == [[1.0, 0.0, 1.0, 0.0, 0.0]]
    assert figures(stats) == {"clipped": 1.0, "squared_error": 3.0, "value": 9.0, "tokens": 4.0}
    unclipped, stats = value_loss(values, old, returns, mask, cliprange_value=None)
    assert unclipped.item() == 1.5
    assert figures(stats) == {"clipped": 0.0, "squared_error": 3.0, "value": 9.0, "tokens": 4.0}


@pytest.mark.parametrize("cliprange", [0.05, 0.2, 1.5])
def test_policy_loss_matches_the_oracle(cliprange, random_BT, mask_BT, poison):
    logps, old, advantages = random_BT(0, 0.3) - 2, random_BT(1, 0.3) - 2, random_BT(2)
    loss, stats = policy_loss(*(poison(x, mask_BT) for x in (logps, old, advantages)), mask_BT, cliprange)
    expected_loss, expected = oracles.policy_loss(
        logps.tolist(), old.tolist(), advantages.tolist(), mask_BT.tolist(), cliprange
    )
    assert loss.item() == pytest.approx(expected_loss, rel=1e-13)
    assert figures(stats) == pytest.approx(expected, rel=1e-12)
    assert 0 < expected["clipped"] < expected["tokens"] or cliprange == 1.5


@pytest.mark.parametrize("cliprange", [0.15, 1.0, None])
def test_value_loss_matches_the_oracle(cliprange, random_BT, mask_BT, poison):
    values, old, returns = random_BT(3), random_BT(4), random_BT(5)
    loss, stats = value_loss(*(poison(x, mask_BT) for x in (values, old, returns)), mask_BT, cliprange)
    expected_loss, expected = oracles.value_loss(
        values.tolist(), old.tolist(), returns.tolist(), mask_BT.tolist(), cliprange
    )
    assert loss.item() == pytest.approx(expected_loss, rel=1e-13)
    assert figures(stats) == pytest.approx(expected, rel=1e-13)
    assert (expected["clipped"] > 0) == (cliprange is not None)


@pytest.mark.parametrize("loss_function", [policy_loss, value_loss])
def test_garbage_at_masked_positions_changes_no_gradient(loss_function, random_BT, mask_BT, poison):
    inputs = [random_BT(seed, 0.3) for seed in (6, 7, 8)]
    clean = inputs[0].clone().requires_grad_()
    dirty = poison(inputs[0], mask_BT).requires_grad_()
    loss_function(clean, *inputs[1:], mask_BT, 0.2)[0].backward()
    loss_function(dirty, *(poison(x, mask_BT) for x in inputs[1:]), mask_BT, 0.2)[0].backward()
    assert torch.equal(dirty.grad, clean.grad)
    assert torch.all(dirty.grad[mask_BT == 0] == 0) and torch.any(dirty.grad != 0)


@pytest.mark.parametrize("loss_function", [policy_loss, value_loss])
def test_gradients_are_the_derivatives(loss_function, random_BT, mask_BT):
    first, second, third = random_BT(9, 0.5), random_BT(10, 0.5), random_BT(11)
    assert torch.autograd.gradcheck(
        lambda x: loss_function(x, second, third, mask_BT, 0.2)[0], (first.requires_grad_(),)
    )


@pytest.mark.parametrize("loss_function", [policy_loss, value_loss])
def test_sums_over_micro_batches_are_the_sum_of_the_batch(loss_function, random_BT, mask_BT):
    inputs = [random_BT(seed, 0.4) for seed in (12, 13, 14)]
    whole, whole_stats = loss_function(*inputs, mask_BT, 0.2)
    parts = [loss_function(*(x[rows] for x in inputs), mask_BT[rows], 0.2) for rows in (slice(0, 1), slice(1, 5))]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-13)
    (_, first), (_, second) = parts
    join = {"ratio_max": torch.maximum, "ratio_min": torch.minimum}
    joined = {name: join.get(name, torch.add)(first[name], second[name]) for name in whole_stats}
    assert figures(joined) == pytest.approx(figures(whole_stats), rel=1e-13)


@pytest.mark.parametrize("loss_function", [policy_loss, value_loss])
def test_only_the_first_argument_gets_a_gradient(loss_function):
    tensors = [torch.full((1, 2), 0.1 * k, requires_grad=True) for k in range(1, 4)]
    loss, stats = loss_function(*tensors, torch.ones(1, 2), 0.2)
    loss.backward()
    assert tensors[0].grad is not None and tensors[1].grad is None and tensors[2].grad is None
    assert not any(figure.requires_grad for figure in stats.values())


def test_at_the_old_policy_the_loss_is_the_plain_policy_gradient(random_BT, mask_BT):
    logps, advantages = random_BT(15).requires_grad_(), random_BT(16)
    loss, stats = policy_loss(logps, logps.detach().clone(), advantages, mask_BT, 0.2)
    loss.backward()
    torch.testing.assert_close(logps.grad, torch.where(mask_BT != 0, -advantages, 0.0), rtol=1e-14, atol=0.0)
    found = figures(stats)
    assert (found["clipped"], found["approx_kl"], found["ratio_min"], found["ratio_max"]) == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("loss_function", [policy_loss, value_loss])
def test_nothing_that_counts_gives_zero_and_no_nan(loss_function):
    first = torch.full((2, 3), math.nan, requires_grad=True)
    rest = torch.full((2, 3), math.inf)
    loss, stats = loss_function(first, rest, rest, torch.zeros(2, 3), 0.2)
    loss.backward()
    assert loss.item() == 0.0 and torch.all(first.grad == 0)
    assert stats["tokens"].item() == 0.0 and not any(torch.isnan(figure) for figure in stats.values())


@pytest.mark.parametrize("loss_function", [policy_loss, value_loss])
def test_bad_input_is_refused(loss_function):
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"must be above 0, found 0"):
        loss_function(x, x, x, x, 0.0)
    with pytest.raises(ValueError, match=r"mask_BT \(2, 1\)"):
        loss_function(x, x, x, torch.ones(2, 1), 0.2)
