"""Places of rows in their set, by hand; what they are the same under; and the product of two."""

import math

import pytest

from align.curation.scale import is_high_quality, quality_times_difficulty, quantiles


def test_quantiles_by_hand_with_levels_and_rows_without_a_score():
    assert quantiles([3.0, None, 1.0, 2.0, 2.0]) == [7 / 8, None, 1 / 8, 1 / 2, 1 / 2]
    assert quantiles([5.0]) == [0.5] and quantiles([None]) == [None] and quantiles([]) == []
    scores = [-4.0, 0.1, 2.5, 0.1, -9.0]
    assert quantiles([math.exp(score) for score in scores]) == quantiles(scores)
    assert quantiles([score if score < 2 else 1e9 for score in scores]) == quantiles(scores)


def test_a_row_is_worth_its_quality_times_its_difficulty():
    quality, difficulty = [-3.0, -1.0, 2.0, 8.0, None], [3, 1, 2, None, 1]
    # quantiles of quality: 1/8, 3/8, 5/8, 7/8; of difficulty: 7/8, 1/4, 5/8, -, 1/4
    assert quality_times_difficulty(quality, difficulty) == pytest.approx([7 / 64, 3 / 32, 25 / 64, None, None])


def test_the_top_quarter_is_a_quarter_and_of_levels_what_has_room_or_is_best():
    assert is_high_quality([1.0, 4.0, 2.0, 3.0]) == [False, True, False, False]
    assert sum(is_high_quality([float(n) for n in range(100)])) == 25
    assert sum(is_high_quality([float(n) for n in range(100)], 1.0)) == 100
    assert is_high_quality([1.0, None, 1.0]) == [True, False, True] and is_high_quality([None]) == [False]
    assert is_high_quality([3.0] * 7 + [2.0] * 3) == [True] * 7 + [False] * 3, "full points, as of Llama 3"
    assert sum(is_high_quality([float(n) for n in range(30)], 0.1)) == 3
    assert is_high_quality([3.0] * 2 + [1.0] * 8) == [True] * 2 + [False] * 8
