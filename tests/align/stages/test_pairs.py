import math

import pytest

from align.stages import pairs
from data_formats.records import Comparison, Message


def pair(chosen, rejected):
    return Comparison((Message("user", "q"),), chosen, rejected)


def test_wilson_by_hand():
    # centre (0.8 + 0.19207294588) / 1.38414589176, half width by its formula
    low, high = pairs.wilson(8, 10)
    assert (low, high) == pytest.approx((0.490162, 0.943318), abs=1e-6)


def test_wilson_solves_its_own_equation():
    for correct, n in ((0, 7), (3, 9), (780, 1000), (7, 7)):
        for bound in pairs.wilson(correct, n):
            if 0 < bound < 1:  # |p_hat - p| = z sqrt(p (1 - p) / n)
                spread = pairs.Z95 * math.sqrt(bound * (1 - bound) / n)
                assert abs(correct / n - bound) == pytest.approx(spread, rel=1e-9)
    assert pairs.wilson(0, 7)[0] == 0.0
    assert pairs.wilson(7, 7)[1] == 1.0
    assert pairs.wilson(0, 0) == (0.0, 1.0)


def test_accuracy_and_its_parts():
    right = [True, False, True, True]
    whole = pairs.accuracy(right)
    assert (whole["accuracy"], whole["correct"], whole["pairs"]) == (0.75, 3, 4)
    parts = pairs.accuracy_by(right, [["a"], ["a", "b"], [], ["b"]])
    assert {name: (part["correct"], part["pairs"]) for name, part in parts.items()} == {"a": (1, 2), "b": (1, 2)}


def test_length_baseline_takes_its_direction_from_training():
    longer_wins = [pair("long reply", "short"), pair("longest reply", "x")]
    shorter_wins = [pair("x", "long reply")]
    held_out = [pair("aaaa", "b"), pair("a", "bbbb"), pair("ccc", "d"), pair("ee", "ff")]
    assert pairs.length_baseline(longer_wins, held_out) == pytest.approx((2 + 0.5) / 4)
    assert pairs.length_baseline(shorter_wins, held_out) == pytest.approx((1 + 0.5) / 4)


def test_majority_baseline_answers_the_side_that_won_more_often():
    left_wins = [pair("a", "b"), pair("c", "d"), pair("z", "y")]
    assert pairs.majority_baseline(left_wins, [pair("a", "b"), pair("f", "e"), pair("g", "h")]) == pytest.approx(2 / 3)
    right_wins = [pair("b", "a")]
    assert pairs.majority_baseline(right_wins, [pair("a", "b"), pair("f", "e"), pair("g", "h")]) == pytest.approx(1 / 3)
