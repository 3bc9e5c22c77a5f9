import math

import pytest

from align.evaluation.calibration import calibration_error, cross_fitted, fit_temperature, halves, reliability
from data_formats.records import Comparison, Message
from data_formats.splitting import prompt_key, split_heldout


def test_reliability_and_its_error_by_hand():
    nine = math.log(9)  # probability 0.9
    rows = reliability([0.5, 0.5, -0.5, nine, -nine], bins=2)
    stated = 1 / (1 + math.exp(-0.5))
    assert rows == [
        {"stated": pytest.approx(stated), "found": pytest.approx(2 / 3), "pairs": 3},
        {"stated": pytest.approx(0.9), "found": 0.5, "pairs": 2},
    ]
    assert calibration_error(rows) == pytest.approx((3 * (2 / 3 - stated) + 2 * 0.4) / 5)


def test_temperature_of_two_sided_differences_is_known():
    # three right, one wrong by 2: best where sigmoid(2 / T) = 3/4, that is T = 2 / log 3
    assert fit_temperature([2.0, 2.0, 2.0, -2.0]) == pytest.approx(2 / math.log(3), rel=1e-6)
    assert fit_temperature([1.0, -1.0, -1.0]) == pytest.approx(1000)
    assert fit_temperature([1.0, 2.0]) == pytest.approx(0.001, rel=0.5)


def test_each_half_is_judged_at_the_other_halfs_temperature():
    keys = ["one"] * 4 + ["two"] * 5
    assert set(halves(keys).values()) == {0, 1}
    # "one": 3 of 4 right by 2, T = 2 / log 3; "two": 4 of 5 right by 1, T = 1 / log 4
    differences = [2.0, 2.0, 2.0, -2.0, 1.0, 1.0, 1.0, 1.0, -1.0]
    scaled = cross_fitted(differences, keys)
    two = 2 * math.log(4)
    one = math.log(3) / 2
    assert scaled == pytest.approx([two, two, two, -two, one, one, one, one, -one], rel=1e-6)
    # stated 16/17 against found 3/4, and 3^.5 / (1 + 3^.5) against 4/5
    expected = (4 * abs(16 / 17 - 3 / 4) + 5 * abs(math.sqrt(3) / (1 + math.sqrt(3)) - 4 / 5)) / 9
    assert calibration_error(reliability(scaled)) == pytest.approx(expected, rel=1e-6)


def test_a_temperature_looks_worse_where_it_was_not_fitted():
    keys = ["one"] * 4 + ["two"] * 4
    differences = [2.0, 2.0, 2.0, -2.0, 2.0, 2.0, -2.0, -2.0]
    own = fit_temperature(differences)
    same = calibration_error(reliability([d / own for d in differences]))
    assert same == pytest.approx(0, abs=1e-6) and calibration_error(reliability(cross_fitted(differences, keys))) > 0.2


def test_halves_are_even_stable_and_hold_prompts_together():
    keys = [f"prompt {at % 10}" for at in range(30)]
    found = halves(keys)
    assert sorted(found.values()) == [0] * 5 + [1] * 5
    assert found == halves(list(reversed(keys)))
    assert cross_fitted([1.0, -1.0], ["same", "same"]) is None


def test_prompts_that_a_hash_held_out_fall_into_both_halves():
    pairs = [Comparison((Message("user", f"q{at}"),), "a", "b") for at in range(400)]
    _, heldout = split_heldout(pairs, 0.1)
    sides = list(halves([prompt_key(pair) for pair in heldout]).values())
    assert len(sides) > 20 and abs(sides.count(0) - sides.count(1)) <= 1
