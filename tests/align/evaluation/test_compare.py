"""Comparison figures by hand."""

import math

import pytest

from align.evaluation.compare import decided_share, mean, paired_difference


def test_paired_difference_is_clustered_by_prompt():
    before = [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.5, 0.5]]
    after = [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.5, 0.5]]
    # prompt means differ by 0.5, 0, 0.5, 0: mean 0.25, sample variance 1/12, standard error sqrt(1/48)
    found = paired_difference(before, after)
    assert found["difference"] == pytest.approx(0.25)
    assert found["high"] - found["difference"] == pytest.approx(1.96 * math.sqrt(1 / 48))
    assert found["difference"] - found["low"] == pytest.approx(1.96 * math.sqrt(1 / 48))


def test_wins_among_the_decided():
    assert decided_share({"win": 2, "tie": 1, "loss": 1}) == pytest.approx(2 / 3)
    assert decided_share({"win": 0, "tie": 5, "loss": 0}) is None


def test_mean_is_over_replies():
    assert mean([[1.0], [0.0, 0.0, 0.0]]) == 0.25
