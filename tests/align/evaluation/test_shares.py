import math
import random

import pytest

from align.evaluation.shares import Z95, clustered_wilson, wilson


def test_wilson_by_hand():
    # centre (0.8 + 0.19207294588) / 1.38414589176, half width by its formula
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)


def test_wilson_solves_its_own_equation():
    for correct, n in ((0, 7), (3, 9), (780, 1000), (7, 7)):
        for bound in wilson(correct, n):
            if 0 < bound < 1:  # |p_hat - p| = z sqrt(p (1 - p) / n)
                assert abs(correct / n - bound) == pytest.approx(Z95 * math.sqrt(bound * (1 - bound) / n), rel=1e-9)
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_single_pairs_a_prompt_are_wilsons():
    right = [True, False, True, True]
    assert clustered_wilson(right, "abcd") == pytest.approx(wilson(3, 4), abs=1e-15)


def test_copies_of_an_answer_tell_no_more_than_one():
    """Two prompts right of three, each four times: n / deff = 12 (2/9) / (3/2 (32/3) / 12) by hand, that is 2."""
    right, prompts = [True] * 8 + [False] * 4, [0] * 4 + [1] * 4 + [2] * 4
    share = 2 / 3
    between = 2 * (4 - share * 4) ** 2 + (0 - share * 4) ** 2
    independent = share * (1 - share) / (3 / 2 * between / 144)
    assert independent == pytest.approx(2.0)
    assert clustered_wilson(right, prompts) == pytest.approx(wilson(share * 2, 2))


def test_answers_that_hang_less_together_than_chance_are_not_rewarded():
    right, prompts = [True, False] * 6, [at // 2 for at in range(12)]  # each prompt half right: no spread between them
    assert clustered_wilson(right, prompts) == pytest.approx(wilson(6, 12), abs=1e-15)


def test_nothing_but_right_answers_count_prompts():
    assert clustered_wilson([True] * 8, [0, 0, 0, 0, 1, 1, 1, 1]) == wilson(2, 2)
    assert clustered_wilson([True, False], [0, 0]) == wilson(0.5, 1)


def test_a_tie_is_half_right_and_varies_less():
    """2 wins, 5 ties, a loss: 0.5625, each value's variance (2 x .4375^2 + 5 x .0625^2 + .5625^2) / 8 = .0898; as much
    as 8 x .24609 / .08984 = 21.913 values that are right or wrong."""
    values = [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0]
    assert clustered_wilson(values, range(8)) == pytest.approx(wilson(0.5625 * 21.91304, 21.91304), abs=1e-6)
    doubled = clustered_wilson(values * 2, [*range(8), *range(8)])  # the same 8 prompts: 8/7 of the variance
    assert doubled == pytest.approx(wilson(0.5625 * 21.91304 * 7 / 8, 21.91304 * 7 / 8), abs=1e-6)
    assert clustered_wilson([0.5] * 9, range(9)) == wilson(4.5, 9)


def test_the_interval_covers_the_truth_where_wilsons_own_does_not():
    rng, covered, plain = random.Random(0), 0, 0
    for _ in range(300):
        right, prompts = [], []
        for prompt in range(60):
            share = rng.choice((0.4, 1.0))  # of 5 pairs, 0.7 in the mean
            right += [rng.random() < share for _ in range(5)]
            prompts += [prompt] * 5
        low, high = clustered_wilson(right, prompts)
        covered += low <= 0.7 <= high
        low, high = wilson(sum(right), len(right))
        plain += low <= 0.7 <= high
    assert covered >= 275 > 265 > plain
