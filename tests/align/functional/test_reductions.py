"""Loss reductions: the gradient weights of {A} and {A, B, C} on a linear model, and the rules around them."""

from fractions import Fraction

import pytest
import torch

from align.functional.logprobs import token_logprobs
from align.functional.reductions import REDUCTIONS, counted_labels, loss_weights
from align.functional.supervised import predicting_positions

A, B, C = 0, 1, 2
VOCAB = 5


def turn_shares(conversations, reduction):
    """How much each of the turns A, B, C pulls, read off the gradient of a linear model.

    Its input is one-hot in the turn that comes next and its weights W are 0, so that all probabilities are 1/V: a
    token with label 0 and weight w adds -w (1 - 1/V) to the gradient of W[turn, 0], and nothing elsewhere in column 0.
    `conversations`: lists of (turn, tokens); each turn is preceded by one token without loss.
    """
    width = max(sum(1 + tokens for _, tokens in conversation) for conversation in conversations) + 2
    labels = torch.full((len(conversations), width), -100)
    turns, owner = torch.zeros_like(labels), torch.zeros_like(labels)
    for row, conversation in enumerate(conversations):
        at = 1
        for number, (turn, tokens) in enumerate(conversation, 1):
            labels[row, at : at + tokens], turns[row, at : at + tokens] = 0, number
            owner[row, at : at + tokens] = turn
            at += tokens + 1
    weights, units = loss_weights(labels, reduction, turns)
    flat = predicting_positions(weights)
    features = torch.nn.functional.one_hot(owner.flatten()[flat + 1], 3).double()
    matrix = torch.zeros(3, VOCAB, dtype=torch.float64, requires_grad=True)
    logps = token_logprobs(features @ matrix, labels.flatten()[flat + 1])
    loss = -(logps * weights.flatten()[flat + 1]).sum() / units
    loss.backward()
    return (-matrix.grad[:, 0] / (1 - 1 / VOCAB)).tolist()


EXPECTED = {
    "session_mean": [Fraction(2, 3), Fraction(1, 6), Fraction(1, 6)],
    "turn_mean": [Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)],
    "prefix_mean": [Fraction(17, 24), Fraction(5, 24), Fraction(1, 12)],
}


@pytest.mark.parametrize("lengths", [(1, 1, 1, 1), (2, 7, 3, 1), (5, 5, 1, 9)])
@pytest.mark.parametrize("reduction", EXPECTED)
def test_weights_of_a_and_a_b_c_whatever_the_length_of_a_turn(reduction, lengths):
    alone, first, second, third = lengths
    found = turn_shares([[(A, alone)], [(A, first), (B, second), (C, third)]], reduction)
    assert found == pytest.approx([float(share) for share in EXPECTED[reduction]], rel=1e-14)


def test_token_mean_weighs_turns_by_their_tokens():
    found = turn_shares([[(A, 2)], [(A, 1), (B, 4), (C, 3)]], "token_mean")
    assert found == pytest.approx([3 / 10, 4 / 10, 3 / 10], rel=1e-14)


def test_turn_mean_is_the_split_with_loss_on_each_last_turn_and_prefix_mean_the_split_with_loss_on_all():
    """The splits as samples of their own: (A), (A), (A, B), (A, B, C), reduced by session_mean."""
    split = [[(A, 2)], [(A, 3)], [(A, 3), (B, 5)], [(A, 3), (B, 5), (C, 1)]]
    whole = [[(A, 2)], [(A, 3), (B, 5), (C, 1)]]
    assert turn_shares(whole, "prefix_mean") == pytest.approx(turn_shares(split, "session_mean"), rel=1e-14)
    last = [[(A, 2)], [(A, 3)], [(B, 5)], [(C, 1)]]
    assert turn_shares(whole, "turn_mean") == pytest.approx(turn_shares(last, "session_mean"), rel=1e-14)


def test_units_and_weights_by_hand():
    labels = torch.tensor([[-100, 7, 7, -100, 7], [9, -100, 9, -100, -100]])
    turns = torch.tensor([[0, 2, 2, 0, 5], [1, 0, 1, 0, 0]])  # gaps in the numbers; a first label never counts
    units = {}
    for reduction in REDUCTIONS:
        weights, count = loss_weights(labels, reduction, turns)
        assert weights.dtype == torch.float64 and count.dtype == torch.int64
        units[reduction] = (weights.tolist(), int(count))
    assert units["token_mean"] == ([[0, 1, 1, 0, 1], [0, 0, 1, 0, 0]], 4)
    assert units["session_mean"] == ([[0, 0.25, 0.25, 0, 0.5], [0, 0, 1, 0, 0]], 2)
    assert units["turn_mean"] == ([[0, 0.5, 0.5, 0, 1], [0, 0, 1, 0, 0]], 3)
    assert units["prefix_mean"] == ([[0, 0.75, 0.75, 0, 0.5], [0, 0, 1, 0, 0]], 3)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_packed_row_weighs_what_its_samples_weigh_alone(reduction):
    one = ([3, 4, -100, 5], [1, 1, 0, 2])
    two = ([-100, 6, 7], [0, 1, 1])
    packed, count = loss_weights(
        torch.tensor([[*one[0], *two[0], -100]]),
        reduction,
        torch.tensor([[*one[1], *two[1], 0]]),
        torch.tensor([[1] * 4 + [2] * 3 + [0]]),
    )
    apart = [loss_weights(torch.tensor([ids]), reduction, torch.tensor([turns])) for ids, turns in (one, two)]
    assert packed.tolist() == [[*apart[0][0][0].tolist(), *apart[1][0][0].tolist(), 0.0]]
    assert int(count) == sum(int(units) for _, units in apart)


def test_first_labels_never_count():
    labels = torch.tensor([[1, 2, 3, 4, -100]])
    assert counted_labels(labels).tolist() == [[False, True, True, True, False]]
    segments = torch.tensor([[1, 1, 2, 2, 0]])
    assert counted_labels(labels, segments).tolist() == [[False, True, False, True, False]]
    assert labels.tolist() == [[1, 2, 3, 4, -100]]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_to_learn_is_zero_units(reduction):
    weights, units = loss_weights(torch.full((2, 3), -100), reduction, torch.zeros(2, 3, dtype=torch.int64))
    assert int(units) == 0 and weights.tolist() == [[0.0] * 3] * 2


def test_bad_input_is_refused():
    labels = torch.tensor([[-100, 4]])
    with pytest.raises(ValueError, match=r"one of token_mean, session_mean, turn_mean, prefix_mean, found 'mean'"):
        loss_weights(labels, "mean")
    with pytest.raises(ValueError, match="'turn_mean' needs the turn of every label"):
        loss_weights(labels, "turn_mean")
    with pytest.raises(ValueError, match="belongs to no turn"):
        loss_weights(labels, "turn_mean", torch.zeros_like(labels))
    with pytest.raises(ValueError, match=r"turns_BT \(1, 1\)"):
        loss_weights(labels, "turn_mean", torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"segments_BT \(1, 1\)"):
        loss_weights(labels, "token_mean", None, torch.ones(1, 1))
