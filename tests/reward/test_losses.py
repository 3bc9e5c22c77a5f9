import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from reward.losses import pairwise_logistic

scores = st.floats(-50, 50)


@given(scores, scores)
def test_equals_the_formula_in_python_floats(chosen, rejected):
    difference = rejected - chosen
    expected = max(difference, 0) + math.log1p(math.exp(-abs(difference)))
    loss = pairwise_logistic(torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64))
    assert math.isclose(loss.item(), expected, rel_tol=1e-12, abs_tol=1e-15)


def test_known_values_and_one_loss_a_pair():
    losses = pairwise_logistic(torch.tensor([0.0, 1.0, 1000.0, -1000.0]), torch.tensor([0.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(losses, torch.tensor([math.log(2), 0.31326169, 0.0, 1000.0]))


def test_gradient_is_minus_the_probability_of_the_wrong_order():
    chosen = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    pairwise_logistic(chosen, torch.zeros(2, dtype=torch.float64)).sum().backward()
    expected = torch.tensor([-1 / (1 + math.exp(1)), -1 / (1 + math.exp(-2))], dtype=torch.float64)
    torch.testing.assert_close(chosen.grad, expected)


def test_half_precision_scores_give_float32_losses():
    loss = pairwise_logistic(torch.tensor([12.0], dtype=torch.bfloat16), torch.tensor([0.0], dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
    assert math.isclose(loss.item(), math.log1p(math.exp(-12)), rel_tol=1e-5)
