"""Diversity and complexity of a set by its tags, by hand."""

from __future__ import annotations

import math
import random

import pytest

from align.data.variety import Variety

ROWS = [("a", "b"), ("a",), ("a", "c", "c"), ()]


def test_figures_by_hand():
    found = Variety(ROWS)
    assert (found.rows, found.tagged, found.diversity, found.complexity) == (4, 3, 3, 5 / 4)
    # a stands in 3 rows, b and c in one: E = 3 + 3/4 * 2*1 / (2*1) = 3.75, variance 3 (1 - 3/3.75) = 0.6
    half = 1.959963984540054 * math.sqrt(0.6)
    assert found.diversity_interval == pytest.approx((3 - half, 3 + half))
    # 2, 1, 2, 0 tags: variance 11/12, standard error sqrt(11/48)
    half = 1.959963984540054 * math.sqrt(11 / 48)
    assert found.complexity_interval == pytest.approx((1.25 - half, 1.25 + half))
    said = found.describe(vocabulary=6, most=2)
    assert said == (
        "3 different tags (1 to 5), 50.0 % of a vocabulary of 6; 1.25 a row (0.31 to 2.19), 1 of 4 rows without any; "
        "most often: a 3, b 1"
    )


def test_sets_of_nothing_have_figures_too():
    for rows in ([], [()], [("a",)]):
        found = Variety(rows)
        assert found.diversity_interval == (found.diversity, found.diversity)
        assert found.complexity_interval == (found.complexity, found.complexity)


def test_the_interval_of_diversity_covers_other_sets_of_the_same_size():
    chance = random.Random(0)
    tags = [f"tag {at}" for at in range(300)]
    weights = [1 / (at + 1) for at in range(300)]
    sets = [Variety(chance.choices(tags, weights, k=2) for _ in range(200)) for _ in range(60)]
    mean = sum(one.diversity for one in sets) / len(sets)
    covered = sum(one.diversity_interval[0] <= mean <= one.diversity_interval[1] for one in sets)
    assert 0.85 <= covered / len(sets) <= 1
