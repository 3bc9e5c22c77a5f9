import pytest
import torch

from align.functional import gae
from tests import oracles

NAN = float("nan")


def test_by_hand():
    # deltas from the end: 1 - 0.5 = 0.5; 0 + 0.5 * 0.5 - 1 = -0.75; 0 + 0.5 * 1 - 2 = -1.5; gamma * lam = 0.25
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[2.0, 1.0, 0.5]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[-1.5 + 0.25 * -0.625, -0.75 + 0.25 * 0.5, 0.5]]
    assert returns.tolist() == [[2.0 - 1.65625, 1.0 - 0.625, 1.0]]


def test_undiscounted_with_lambda_one_is_return_minus_value():
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[10.0, 20.0, 30.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=1.0)
    assert returns.tolist() == [[7.0, 6.0, 4.0]]
    assert advantages.tolist() == [[-3.0, -14.0, -26.0]]


def test_lambda_zero_is_the_one_step_error():
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[10.0, 20.0, 30.0]])
    advantages, _ = gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=0.0)
    assert advantages.tolist() == [[11.0, 12.0, -26.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_matches_the_double_sum_whatever_stands_at_masked_positions(gamma, lam, random_BT, mask_BT, poison):
    rewards, values = random_BT(0), random_BT(1)
    expected = oracles.gae(rewards.tolist(), values.tolist(), mask_BT.tolist(), gamma, lam)
    found = gae(poison(rewards, mask_BT), poison(values, mask_BT), mask_BT, gamma, lam)
    for tensor, rows in zip(found, expected, strict=True):
        torch.testing.assert_close(tensor, torch.tensor(rows, dtype=torch.float64), rtol=1e-13, atol=1e-14)
        assert torch.all(tensor[mask_BT == 0] == 0)


def test_a_gap_is_no_time_step():
    dense = gae(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.25, 4.0]]), torch.ones(1, 3), 0.9, 0.5)
    gap = torch.tensor([[0, 1, 0, 0, 1, 1, 0]])
    rewards = torch.tensor([[NAN, 1.0, 9.0, NAN, 2.0, 3.0, 9.0]])
    values = torch.tensor([[7.0, 0.5, NAN, 7.0, 0.25, 4.0, 7.0]])
    for spread, plain in zip(gae(rewards, values, gap, 0.9, 0.5), dense, strict=True):
        assert torch.equal(spread[gap != 0], plain[0])


def test_rows_without_tokens_and_no_tokens_at_all_are_fine():
    advantages, returns = gae(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3), 1.0, 0.95)
    assert not advantages.any() and not returns.any()
    advantages, returns = gae(torch.ones(2, 0), torch.ones(2, 0), torch.ones(2, 0), 1.0, 0.95)
    assert advantages.shape == returns.shape == (2, 0)


def test_the_result_carries_no_gradient_and_the_inputs_are_left_alone():
    rewards, values = torch.ones(1, 3), torch.ones(1, 3, requires_grad=True)
    advantages, returns = gae(rewards, values, torch.tensor([[1, 1, 0]]), 1.0, 0.95)
    assert not advantages.requires_grad and not returns.requires_grad
    assert rewards.tolist() == values.tolist() == [[1.0, 1.0, 1.0]]


def test_half_precision_values_are_accumulated_in_float32():
    advantages, _ = gae(
        torch.zeros(1, 300).bfloat16(), torch.full((1, 300), 0.5).bfloat16(), torch.ones(1, 300), 1.0, 1.0
    )
    assert advantages.dtype == torch.float32
    assert torch.all(advantages == -0.5)


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"values_BT \(1, 4\)"):
        gae(torch.ones(1, 3), torch.ones(1, 4), torch.ones(1, 3), 1.0, 0.95)
