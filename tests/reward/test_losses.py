import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from reward.losses import mean_by_group, pairwise_logistic, preference_loss

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


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


@given(st.floats(-8, 8), st.floats(-8, 8), st.floats(0, 3), st.floats(0, 1), st.floats(0, 0.4), st.floats(0, 1))
def test_every_term_of_the_preference_loss_in_python_floats(chosen, rejected, margin, target, smoothing, centering):
    x = chosen - rejected - margin
    right = (1 - smoothing) * target + smoothing * (1 - target)
    expected = -right * log_sigmoid(x) - (1 - right) * log_sigmoid(-x) + centering * (chosen + rejected) ** 2
    options = {"targets_B": target, "label_smoothing": smoothing, "centering": centering, "margins_B": margin}
    both = (torch.tensor([score], dtype=torch.float64) for score in (chosen, rejected))
    assert math.isclose(preference_loss(*both, **options).item(), expected, rel_tol=1e-9, abs_tol=1e-12)


def test_the_plain_case_is_the_logistic_loss_and_a_tie_pulls_scores_together():
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    torch.testing.assert_close(preference_loss(chosen, rejected), pairwise_logistic(chosen, rejected), rtol=0, atol=0)
    tied = torch.tensor([2.0], requires_grad=True)
    preference_loss(tied, torch.tensor([2.0]), targets_B=0.5).sum().backward()
    assert tied.grad.item() == 0


def test_the_mean_over_a_prompts_pairs():
    means = mean_by_group(torch.tensor([1.0, 2.0, 6.0, 5.0]), torch.tensor([0, 0, 0, 2]), 3)
    assert means.tolist() == [3.0, 0.0, 5.0]
