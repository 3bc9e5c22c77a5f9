import math
from dataclasses import replace

import pytest

from align.stages import pairs
from data_formats.records import Comparison, Message


def pair(chosen, rejected):
    return Comparison((Message("user", "q"),), chosen, rejected)


def test_accuracy_and_its_parts():
    right = [True, False, True, True]
    whole = pairs.accuracy(right)
    assert (whole["accuracy"], whole["correct"], whole["pairs"]) == (0.75, 3, 4)
    held_out = [pair("long", "x"), pair("x", "long"), pair("x", "y"), pair("a", "b")]
    parts = pairs.accuracy_by(right, [["a"], ["a", "b"], [], ["b"]], held_out)
    found = {name: (part["correct"], part["pairs"], part["longer"]) for name, part in parts.items()}
    assert found == {"a": (1, 2, 0.5), "b": (1, 2, 0.25)}


def graded(*grades):
    return [replace(pair("a", "b"), grade=grade) for grade in grades]


def test_few_grades_are_parts_of_their_own_and_many_are_put_together():
    assert pairs.grade_names(graded(2, None, 1.5)) == [["2"], [], ["1.5"]]
    names = [name for (name,) in pairs.grade_names(graded(*range(12)))]
    assert names == [f"{low} to {low + 1}" for low in range(0, 12, 2) for _ in range(2)]
    uneven = [name for (name,) in pairs.grade_names(graded(*[1] * 20, 2, 3, 4, 5, 6, 7))]
    assert uneven == ["1"] * 20 + ["2"] + ["3 to 7"] * 5  # the fifth sixth ends at 2


def test_cross_fitting_judges_each_half_at_the_others_temperature():
    """Half a: 3 of 4 right at gap 1, best at T = 1 / log 3; half b the same at gap 2, best at 2 / log 3. Judged at the
    other's, a states sigmoid(log 3 / 2) and b sigmoid(2 log 3) where 3/4 is found."""
    gaps = [1, 1, 1, -1, 2, 2, 2, -2]
    prompts = ["a"] * 4 + ["b"] * 4
    stated = [1 / (1 + 3**-power) for power in (0.5, 2)]
    expected = sum(abs(0.75 - share) for share in stated) / 2
    assert pairs.cross_fitted_error(gaps, prompts) == pytest.approx(expected, abs=1e-6)
    assert math.isnan(pairs.cross_fitted_error(gaps[:4], prompts[:4]))


def test_pairs_of_one_prompt_do_not_narrow_the_interval():
    held_out = [pair("a", "b")] * 6
    figures = pairs.evaluation(held_out, [1.0] * 6, [0.0] * 6)
    assert (figures["accuracy_low"], figures["accuracy_high"]) == pairs.wilson(1, 1)
    assert (figures["accuracy"], figures["longer"], figures["margin"]) == (1.0, 0.5, 1.0)


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
