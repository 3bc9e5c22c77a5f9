"""Mixtures by weight."""

import pytest

from data_formats import DataError, EmptyDatasetError
from data_formats.mixing import mixture

A, B = [f"a{at}" for at in range(100)], [f"b{at}" for at in range(30)]


def test_shares_follow_the_weights_and_nothing_is_repeated():
    mixed = mixture([A, B], [1, 1], seed=0)
    assert mixed.drawn == [30, 30]
    assert len(set(mixed.records)) == 60 and set(B) < set(mixed.records)
    assert mixture([A, B], [0.75, 0.25], seed=0).drawn == [90, 30]
    assert mixture([A, B], [5, 1], seed=0).drawn == [100, 20]


def test_the_seed_decides():
    assert mixture([A, B], [1, 1], seed=3) == mixture([A, B], [1, 1], seed=3)
    assert mixture([A, B], [1, 1], seed=3).records != mixture([A, B], [1, 1], seed=4).records


def test_refusals():
    for weights in ([1, None], [1, 0], [1]):
        with pytest.raises(DataError, match="field 'weight': either all sources"):
            mixture([A, B], weights, seed=0)
    with pytest.raises(EmptyDatasetError, match="source 2 of the mixture"):
        mixture([A, []], [1, 1], seed=0)
