import math

import pytest
import torch

from align.functional import discounted_returns, gae, grpo_advantages, rloo_advantages
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


def estimate(kind, rewards, mask, groups):
    if kind == "rloo":
        return rloo_advantages(rewards, mask, groups)
    return grpo_advantages(rewards, mask, groups, scale=kind == "grpo")


KINDS = ("rloo", "grpo", "dr_grpo")
GROUPS = torch.tensor([7, 3, 7, 7, 3])  # of the rows of `mask_BT`: neither neighbours nor of one size


def test_returns_by_hand():
    # masked: 1 + 0.5 * 4 = 3 and 4, the 9 between them is no step; 2 + 0.5 * 8 = 6 and 8
    rewards = torch.tensor([[1.0, 9.0, 4.0], [NAN, 2.0, 8.0]])
    found = discounted_returns(rewards, torch.tensor([[1, 0, 1], [0, 1, 1]]), gamma=0.5)
    assert found.tolist() == [[3.0, 0.0, 4.0], [0.0, 6.0, 8.0]]


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_returns_match_their_definition_whatever_stands_at_masked_positions(gamma, random_BT, mask_BT, poison):
    expected = oracles.returns_to_go(random_BT(0).tolist(), mask_BT.tolist(), gamma)
    found = discounted_returns(poison(random_BT(0), mask_BT), mask_BT, gamma)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("rloo", [-2.5, 3.5, -1.0]),  # rewards 1, 5, 2: 1 - 7/2, 5 - 3/2, 2 - 6/2
        ("dr_grpo", [-5 / 3, 7 / 3, -2 / 3]),  # minus their mean 8/3
        ("grpo", [x / (math.sqrt((25 + 49 + 4) / 9 / 2) + 1e-4) for x in (-5 / 3, 7 / 3, -2 / 3)]),
    ],
)
def test_advantages_in_a_group_by_hand(kind, expected):
    rewards = torch.tensor([[0.0, 1.0], [2.0, 3.0], [NAN, 2.0], [100.0, 100.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1], [1, 1], [0, 1], [0, 0]])  # the last reply is masked, and so in nobody's mean
    found = estimate(kind, rewards, mask, torch.tensor([4, 4, 4, 4]))
    torch.testing.assert_close(found[:, 1], torch.tensor([*expected, 0.0], dtype=torch.float64), rtol=1e-14, atol=0)
    assert torch.equal(found[:, 0] != 0, torch.tensor([True, True, False, False]))
    assert torch.equal(found[:2, 0], found[:2, 1])  # the reply is one action


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_advantages_in_groups_match_their_definition_whatever_stands_at_masked_positions(
    kind, seed, random_BT, mask_BT, poison
):
    mask_BT = mask_BT.clone()
    if seed:
        mask_BT[seed] = 0  # a reply that does not count
    expected = oracles.group_advantages(random_BT(seed).tolist(), mask_BT.tolist(), GROUPS.tolist(), kind)
    found = estimate(kind, poison(random_BT(seed), mask_BT), mask_BT, GROUPS)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)
    assert torch.any(found != 0) and torch.all(found[mask_BT == 0] == 0) and not found.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_reply_that_counts_and_equal_rewards_teach_nothing(kind):
    rewards, mask = torch.full((4, 3), 1.7), torch.ones(4, 3)
    mask[1] = 0
    found = estimate(kind, rewards, mask, torch.tensor([0, 0, 1, 1]))
    assert torch.all(found[:2] == 0)  # one of two is masked, so the other is alone
    assert found.abs().max() < 1e-9
    assert not estimate(kind, rewards, torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)).any()
    assert estimate(kind, rewards[:, :0], mask[:, :0], torch.tensor([0, 0, 1, 1])).shape == (4, 0)


def test_leave_one_out_is_the_distance_from_the_mean_enlarged(random_BT, mask_BT):
    groups, mask = torch.zeros(5, dtype=torch.long), torch.ones_like(mask_BT)
    loo, far = (estimate(kind, random_BT(4), mask, groups) for kind in ("rloo", "dr_grpo"))
    torch.testing.assert_close(loo, far * 5 / 4)
    scaled = estimate("grpo", random_BT(4), mask, groups)
    assert float(scaled[:, 0].std()) == pytest.approx(1, abs=1e-3)  # that of a sample


def test_advantages_in_groups_refuse_unequal_shapes_and_keep_float32():
    ones = torch.ones(2, 3)
    assert rloo_advantages(ones.bfloat16(), ones, torch.tensor([0, 0])).dtype == torch.float32
    with pytest.raises(ValueError, match=r"groups_B \(3,\)"):
        rloo_advantages(ones, ones, torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match=r"mask_BT \(2, 2\)"):
        grpo_advantages(ones, ones[:, :2], torch.tensor([0, 0]))
