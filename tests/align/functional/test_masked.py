import math

import pytest
import torch

from align.functional import Moments, explained_variance, masked_mean, masked_sum, masked_var, whiten
from tests import oracles

NAN, INF = math.nan, math.inf


def test_sum_mean_and_variance_by_hand():
    x = torch.tensor([[1.0, NAN, 3.0], [INF, 2.0, 10.0]])
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]])
    assert masked_sum(x, mask).item() == 16.0
    assert masked_mean(x, mask).item() == 4.0
    assert masked_var(x, mask).item() == 12.5  # (9 + 1 + 4 + 36) / 4, the population variance of 1, 3, 2, 10
    assert masked_sum(x, mask, dim=1).tolist() == [4.0, 12.0]
    assert masked_mean(x, mask, dim=1).tolist() == [2.0, 6.0]
    assert masked_var(x, mask, dim=1).tolist() == [1.0, 16.0]


def test_columns_without_any_counting_entry_give_zero():
    x = torch.tensor([[NAN, 1.0], [INF, 3.0]])
    mask = torch.tensor([[0, 1], [0, 1]])
    assert masked_mean(x, mask, dim=0).tolist() == [0.0, 2.0]
    assert masked_var(x, mask, dim=0).tolist() == [0.0, 1.0]
    assert masked_mean(x, torch.zeros_like(mask)).item() == 0.0


@pytest.mark.parametrize("statistic", [masked_sum, masked_mean, masked_var])
def test_garbage_at_masked_positions_changes_neither_value_nor_gradient(statistic, random_BT, mask_BT, poison):
    clean = random_BT(0).requires_grad_()
    dirty = poison(clean, mask_BT).requires_grad_()
    for x in (clean, dirty):
        statistic(x, mask_BT).backward()
    assert statistic(dirty, mask_BT).item() == statistic(clean, mask_BT).item()
    assert torch.equal(dirty.grad, clean.grad)
    assert torch.all(dirty.grad[mask_BT == 0] == 0) and torch.any(dirty.grad != 0)


def test_gradients_are_the_derivatives(random_BT, mask_BT):
    x = random_BT(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: (masked_mean(x, mask_BT), masked_var(x, mask_BT, dim=1)), (x,))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_of_any_type(dtype):
    x = torch.tensor([1.0, 2.0, 4.0])
    assert masked_mean(x, torch.tensor([1, 0, 1]).to(dtype)).item() == 2.5


def test_half_precision_is_summed_in_float32():
    x = torch.full((4096,), 0.1, dtype=torch.bfloat16)
    total = masked_sum(x, torch.ones(4096))
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(4096 * 0.10009765625, rel=1e-6)  # 0.10009765625 is 0.1 in bfloat16


def test_unequal_shapes_are_refused_with_both_named():
    with pytest.raises(ValueError, match=r"x \(2, 3\), mask \(2, 1\)"):
        masked_mean(torch.ones(2, 3), torch.ones(2, 1))


def test_moments_match_the_oracle(random_BT, mask_BT, poison):
    x = random_BT(2, 3.0)
    numbers = oracles.counted(x.tolist(), mask_BT.tolist())
    moments = Moments.of(poison(x, mask_BT), mask_BT)
    assert moments.count.item() == len(numbers) == 18
    assert moments.mean.item() == pytest.approx(oracles.mean(numbers), rel=1e-14)
    assert moments.var.item() == pytest.approx(oracles.population_variance(numbers), rel=1e-13)


def test_moments_of_the_parts_are_those_of_the_whole():
    whole = torch.tensor([1.0, 2.0, 4.0, 4.0, 9.0], dtype=torch.float64)
    parts = Moments.of(whole[:1]) + Moments.of(whole[1:3]) + Moments.of(whole[3:])
    assert parts.as_tensor().tolist() == [5.0, 20.0, 118.0] == Moments.of(whole).as_tensor().tolist()
    assert (parts.mean.item(), parts.var.item()) == (4.0, pytest.approx(7.6))  # 118/5 - 16


def test_moments_are_reduced_over_ranks_in_one_call():
    other_rank = Moments.of(torch.tensor([5.0, 7.0]))
    calls = []

    def all_reduce(packed):
        calls.append(packed)
        return packed + other_rank.as_tensor()

    moments = Moments.of(torch.tensor([1.0, 3.0])).reduced(all_reduce)
    assert len(calls) == 1 and calls[0].dtype == torch.float64
    assert (moments.count.item(), moments.mean.item(), moments.var.item()) == (4.0, 4.0, 5.0)


def test_moments_of_nothing_are_zero_not_nan():
    moments = Moments.of(torch.tensor([NAN, INF]), torch.tensor([0, 0]))
    assert (moments.count.item(), moments.mean.item(), moments.var.item()) == (0.0, 0.0, 0.0)


def test_moments_keep_a_small_spread_on_a_large_offset():
    x = 1000.0 + torch.tensor([-(2.0**-10), 2.0**-10], dtype=torch.float32)  # exact in float32, its squares are not
    assert Moments.of(x).var.item() == pytest.approx(2.0**-20, rel=1e-3)


def test_whiten_by_hand():
    x = torch.tensor([[1.0, 2.0, 3.0, 10.0, NAN]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    moments = Moments.of(x, mask)
    assert (moments.mean.item(), moments.var.item()) == (4.0, 12.5)
    root = math.sqrt(12.5)
    expected = [-3 / root, -2 / root, -1 / root, 6 / root, 0.0]
    assert whiten(x, mask, moments.mean, moments.var).tolist()[0] == pytest.approx(expected, rel=1e-6)
    kept_mean = whiten(x, mask, moments.mean, moments.var, shift_mean=False).tolist()[0]
    assert kept_mean == pytest.approx([4 + e for e in expected[:4]] + [0.0], rel=1e-6)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_matches_the_oracle_and_ignores_garbage(shift_mean, random_BT, mask_BT, poison):
    x = random_BT(3, 2.0) + 1.0
    expected = oracles.whiten(x.tolist(), mask_BT.tolist(), 0.75, 3.5, shift_mean, 1e-8)
    white = whiten(poison(x, mask_BT), mask_BT, 0.75, 3.5, shift_mean)
    torch.testing.assert_close(white, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-15)


def test_whitened_has_mean_zero_and_variance_one(random_BT, mask_BT):
    x = random_BT(4, 5.0) - 2.0
    moments = Moments.of(x, mask_BT)
    numbers = oracles.counted(whiten(x, mask_BT, moments.mean, moments.var).tolist(), mask_BT.tolist())
    assert oracles.mean(numbers) == pytest.approx(0.0, abs=1e-14)
    assert oracles.population_variance(numbers) == pytest.approx(1.0, abs=1e-7)


def test_whitening_with_global_moments_does_not_depend_on_the_split(random_BT, mask_BT):
    x = random_BT(5)
    at_once = Moments.of(x, mask_BT)
    split = Moments.of(x[:2], mask_BT[:2]) + Moments.of(x[2:], mask_BT[2:])
    halves = [whiten(x[rows], mask_BT[rows], split.mean, split.var) for rows in (slice(0, 2), slice(2, 5))]
    whole = whiten(x, mask_BT, at_once.mean, at_once.var)
    torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-13, atol=1e-14)


def test_a_constant_whitens_to_zero():
    x = torch.full((1, 3), 7.0)
    moments = Moments.of(x)
    assert whiten(x, torch.ones(1, 3), moments.mean, moments.var).tolist() == [[0.0, 0.0, 0.0]]


def test_explained_variance_by_hand():
    returns = Moments.of(torch.tensor([1.0, 2.0, 3.0, 10.0]))  # variance 12.5, sum of squared deviations 50
    assert explained_variance(torch.tensor(0.0), returns) == 1.0
    assert explained_variance(50.0, returns) == pytest.approx(0.0)
    assert explained_variance(25.0, returns) == pytest.approx(0.5)
    assert explained_variance(100.0, returns) == pytest.approx(-1.0)


def test_explained_variance_of_constant_or_no_returns_is_zero():
    assert explained_variance(3.0, Moments.of(torch.tensor([2.0, 2.0]))) == 0.0
    assert explained_variance(0.0, Moments.of(torch.ones(0))) == 0.0
