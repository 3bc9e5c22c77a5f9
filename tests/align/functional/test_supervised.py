import math

import pytest
import torch

from align.functional import causal_nll_sum
from align.functional.supervised import predicting_positions, weighted_nll_sum
from tests import oracles


def test_by_hand():
    # probabilities 1/8, 2/8, 5/8 at every position; labels judged one position earlier; the first never counts
    logits = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log().expand(1, 4, 3)
    nll, count = causal_nll_sum(logits, torch.tensor([[2, -100, 0, 1]]))
    assert count.item() == 2 and count.dtype == torch.int64
    assert nll.item() == pytest.approx(math.log(8) + math.log(4), rel=1e-14)


def test_matches_the_oracle_and_the_derivatives():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 7, (3, 5), generator=generator)
    labels[0, :3] = -100
    labels[1, 4:] = -100
    nll, count = causal_nll_sum(logits, labels)
    expected, expected_count = oracles.causal_nll(logits.tolist(), labels.tolist())
    assert nll.item() == pytest.approx(expected, rel=1e-13)
    assert count.item() == expected_count == 2 + 3 + 4
    assert torch.autograd.gradcheck(lambda x: causal_nll_sum(x, labels)[0], (logits,))


def test_garbage_logits_where_no_label_counts_change_nothing():
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(2, 4, 5, generator=generator).requires_grad_()
    labels = torch.tensor([[-100, 1, 2, -100], [3, 0, -100, -100]])
    judged = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)  # logits whose next label counts
    dirty = clean.detach().clone()
    dirty[~judged] = torch.tensor([math.nan, math.inf, -math.inf, 1e30, 0.0])
    dirty.requires_grad_()
    sums = []
    for logits in (clean, dirty):
        nll, count = causal_nll_sum(logits, labels)
        nll.backward()
        sums.append((nll.item(), count.item()))
    assert sums[0] == sums[1] and sums[0][1] == 3
    assert torch.equal(dirty.grad, clean.grad)
    assert torch.all(dirty.grad[~judged] == 0)


def test_no_label_at_all_is_zero_with_zero_gradient():
    logits = torch.randn(1, 3, 4, requires_grad=True)
    nll, count = causal_nll_sum(logits, torch.full((1, 3), -100))
    nll.backward()
    assert (nll.item(), count.item()) == (0.0, 0) and torch.all(logits.grad == 0)


def test_bfloat16_logits_are_summed_in_float32():
    logits = torch.zeros(1, 1001, 4, dtype=torch.bfloat16)
    nll, count = causal_nll_sum(logits, torch.zeros(1, 1001, dtype=torch.int64))
    assert nll.dtype == torch.float32 and count.item() == 1000
    assert nll.item() == pytest.approx(1000 * math.log(4), rel=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"labels_BT \(1, 2\)"):
        causal_nll_sum(torch.zeros(1, 3, 4), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        causal_nll_sum(torch.zeros(1, 3, 4), torch.full((1, 3), 4))


def test_predicting_positions_stand_before_the_labels_that_weigh_something():
    weights = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.5]])
    assert predicting_positions(weights).tolist() == [0, 4]
    assert predicting_positions(torch.zeros(2, 3)).tolist() == []


def test_weighted_sum_by_hand_and_its_derivatives():
    logits = torch.tensor([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]], dtype=torch.float64).log().requires_grad_()
    labels, weights = torch.tensor([0, 2]), torch.tensor([0.25, 3.0])
    found = weighted_nll_sum(logits, labels, weights)
    assert found.item() == pytest.approx(0.25 * math.log(8) + 3 * math.log(2), rel=1e-14)
    assert torch.autograd.gradcheck(lambda x: weighted_nll_sum(x, labels, weights), (logits,))


def test_weight_zero_keeps_nan_out_of_value_and_gradient():
    logits = torch.tensor([[math.nan, 1.0], [0.0, 0.0]], requires_grad=True)
    loss = weighted_nll_sum(logits, torch.tensor([0, 1]), torch.tensor([0.0, 2.0]))
    loss.backward()
    assert loss.item() == pytest.approx(2 * math.log(2)) and logits.grad.tolist() == [[0.0, 0.0], [1.0, -1.0]]


def test_no_position_at_all_is_zero_and_still_connected():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = weighted_nll_sum(logits, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad.shape == (0, 4)


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"weights_N \(1,\)"):
        weighted_nll_sum(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), torch.zeros(1))
