"""Clusters of vectors whose groups are plain to see."""

import numpy as np
import pytest

from align.curation import clusters as module
from align.curation.clusters import kmeans, leaders, usual_cosine
from align.textmodels.vectors import unit_rows


def clouds(sizes, dimensions=8, noise=0.05):
    """Vectors round one axis each, and the axis of each."""
    random, axes = np.random.default_rng(3), np.repeat(np.arange(len(sizes)), sizes)
    return unit_rows(np.eye(dimensions)[axes] + noise * random.standard_normal((len(axes), dimensions))), axes


def same_groups(found, wanted):
    """Whether two labellings part the rows alike, however the parts are called."""
    return np.array_equal(found[:, None] == found[None, :], wanted[:, None] == wanted[None, :])


@pytest.mark.needs("sklearn")
def test_kmeans_finds_the_clouds_the_same_each_time_and_numbers_them_without_a_gap():
    vectors, axes = clouds((30, 20, 10))
    found = kmeans(vectors, 3, seed=0)
    assert same_groups(found, axes) and sorted(set(found)) == [0, 1, 2]
    assert np.array_equal(found, kmeans(vectors.astype(np.float16), 3, seed=0))


@pytest.mark.needs("sklearn")
def test_kmeans_of_fewer_different_vectors_than_clusters_leaves_no_empty_cluster():
    vectors = unit_rows(np.eye(4)[[0, 0, 0, 1, 1, 0]])
    found = kmeans(vectors, 5, seed=1)
    assert sorted(set(found)) == list(range(len(set(found)))) and len(set(found)) <= 5
    assert len(set(zip(found, vectors.argmax(1), strict=True))) == len(set(found))  # no cluster holds both
    assert kmeans(vectors[:0], 3, seed=0).tolist() == [] and kmeans(vectors[:1], 3, seed=0).tolist() == [0]


@pytest.mark.needs("scipy")
def test_leaders_join_the_nearest_or_lead(monkeypatch):
    """By hand: 0° leads, 20° joins it (cosine 0.94), 60° leads, 45° is nearer to 60° (0.97) than to 0° (0.71). With a
    limit of 25° a chain (0°, 20°, 40°) does not pull its ends together."""
    angles = np.radians([0, 20, 60, 45, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert leaders(vectors, 0.7).tolist() == [0, 0, 2, 2, 4]
    assert leaders(vectors, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert leaders(vectors, 0.0).tolist() == [0, 0, 0, 0, 4]
    assert leaders(vectors[:0], 0.5).tolist() == []
    angles = np.radians([0, 20, 40, 10, 90, 41])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for block in (1, 2, 256):
        monkeypatch.setattr(module, "COMPARED", block)
        assert leaders(vectors, np.cos(np.radians(25))).tolist() == [0, 0, 2, 0, 4, 2]


def test_leaders_over_more_than_a_block_are_those_found_one_by_one():
    vectors, _ = clouds((300, 250, 200), noise=0.2)
    led, places, wanted = [], [], []
    for at, vector in enumerate(vectors):
        near = [float(vector @ other) for other in led]
        if not near or max(near) < 0.8:
            led.append(vector)
            places.append(at)
            wanted.append(at)
        else:
            wanted.append(places[int(np.argmax(near))])
    assert len(led) > 3
    assert leaders(vectors, 0.8).tolist() == wanted
    from scipy import sparse

    assert leaders(sparse.csr_matrix(vectors), 0.8).tolist() == wanted


def test_the_usual_cosine_is_reached_by_one_pair_in_sqrt_n_whatever_the_level():
    """By hand: of two times eight equal vectors 56 of 120 pairs are one, and one in 4 is asked for; of twenty at right
    angles none is."""
    assert usual_cosine(np.repeat(np.eye(2), 8, axis=0), seed=0) == 1.0 and usual_cosine(np.eye(20), seed=0) == 0.0
    vectors, _ = clouds((300, 250, 200), noise=0.3)
    lifted = unit_rows(np.concatenate([vectors, np.full((750, 1), 3.0)], axis=1))  # as a causal model has them
    for some in (vectors, lifted.astype(np.float16)):
        alike = unit_rows(some) @ unit_rows(some).T
        reached = alike[np.triu_indices(750, 1)] >= usual_cosine(some, seed=0)
        assert reached.mean() == pytest.approx(750**-0.5, abs=1e-3)
    assert usual_cosine(vectors[:1], seed=0) == 1.0
