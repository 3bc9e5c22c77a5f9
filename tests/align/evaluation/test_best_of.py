"""The best of k: exact expectations over subsets, against their enumeration."""

from itertools import combinations
from statistics import fmean, median

import numpy as np
import pytest

from align.evaluation.best_of import best_of, order_weights, subset_sizes


@pytest.mark.parametrize("count", [2, 3, 6, 7])
def test_every_subset_counts_alike(count):
    scores = np.random.default_rng(count).normal(size=(3, count)).tolist()
    scores[0][1] = scores[0][0]  # a tie
    for row in best_of(scores):
        subsets = [list(subset) for one in scores for subset in combinations(one, row["k"])]
        assert row["best"] == pytest.approx(fmean(map(max, subsets)), abs=1e-12)
        assert row["median"] == pytest.approx(fmean(map(median, subsets)), abs=1e-12)
        assert row["gap"] == row["best"] - row["median"]


def test_by_hand():
    first, second = best_of([[3.0, 1.0]])
    assert first == {"k": 1, "best": 2.0, "median": 2.0, "gap": 0.0}
    assert second == {"k": 2, "best": 3.0, "median": 2.0, "gap": 1.0}
    assert [row["k"] for row in best_of([[0.0] * 10])] == subset_sizes(10) == [1, 2, 4, 8, 10]
    assert subset_sizes(8) == [1, 2, 4, 8] and sum(order_weights(30, 8, 3)) == pytest.approx(1.0, abs=1e-12)
