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


def test_accuracy_by_length_gap():
    held_out = [pair("a" * n, "b" * 200) for n in (1, 150, 195, 205, 250, 400)]
    found = pairs.accuracy_by_length_gap([True] * 6, held_out)
    assert {name: part["pairs"] for name, part in found.items()} == {
        "shorter by over 100": 1,
        "shorter by 11 to 100": 1,
        "within 10": 2,
        "longer by 11 to 100": 1,
        "longer by over 100": 1,
    }


def test_reliability_and_its_error_by_hand():
    nine = math.log(9)  # probability 0.9
    rows = pairs.reliability([0.5, 0.5, -0.5, nine, -nine], bins=2)
    stated = 1 / (1 + math.exp(-0.5))
    assert rows == [
        {"stated": pytest.approx(stated), "found": pytest.approx(2 / 3), "pairs": 3},
        {"stated": pytest.approx(0.9), "found": 0.5, "pairs": 2},
    ]
    assert pairs.calibration_error(rows) == pytest.approx((3 * (2 / 3 - stated) + 2 * 0.4) / 5)


def test_temperature_of_two_sided_differences_is_known():
    # three right, one wrong by 2: best where sigmoid(2 / T) = 3/4, that is T = 2 / log 3
    assert pairs.fit_temperature([2.0, 2.0, 2.0, -2.0]) == pytest.approx(2 / math.log(3), rel=1e-6)
    assert pairs.fit_temperature([1.0, -1.0, -1.0]) == pytest.approx(1000)
    assert pairs.fit_temperature([1.0, 2.0]) == pytest.approx(0.001, rel=0.5)


def test_most_wrong_and_score_summary():
    assert pairs.most_wrong([1.0, -3.0, -0.5, 0.0, -7.0], 2) == [4, 1]
    found = pairs.score_summary([1.0, 3.0], [0.0, 0.0])
    assert found["chosen"] == {"mean": 2.0, "std": 1.0, "min": 1.0, "median": 2.0, "max": 3.0}
    assert found["rejected"]["std"] == 0.0
