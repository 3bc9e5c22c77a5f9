"""The greedy choice against the same written plainly, and its edges by hand."""

import numpy as np
import pytest

from align.curation import choosing
from align.curation.choosing import REASONS, choose, farthest_first, keep_apart, quotas
from align.textmodels.vectors import unit_rows

KEPT, DUPLICATE, LOW, OVER = range(4)


def at_angles(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def fates(vectors, clusters, worth, **options):
    told = {"max_cosine": 0.95, "budget": len(vectors)} | options
    return choose(vectors, np.array(clusters), np.array(worth, float), **told).fate_N.tolist()


def plainly(vectors, clusters, worth, max_cosine):
    """Which rows are kept without a budget, and the nearest of those kept before each."""
    kept, near = [], {}
    for row in sorted(range(len(vectors)), key=lambda row: (clusters[row], -worth[row], row)):
        others = [other for other in kept if clusters[other] == clusters[row]]
        cosines = [float(vectors[row] @ vectors[other]) for other in others]
        if others:
            near[row] = (others[int(np.argmax(cosines))], max(cosines))
        if not others or max(cosines) <= max_cosine:
            kept.append(row)
    return sorted(kept), near


@pytest.mark.parametrize("max_cosine", [0.3, 0.8, 0.99])
def test_it_is_the_plain_greedy_choice_over_many_blocks(monkeypatch, max_cosine):
    monkeypatch.setattr(choosing, "BLOCK", 7)
    random = np.random.default_rng(5)
    vectors = unit_rows(random.standard_normal((160, 3)))
    clusters, worth = random.integers(0, 4, 160), random.integers(0, 9, 160) / 9  # many ties
    wanted, near = plainly(vectors, clusters, worth, max_cosine)
    found = choose(vectors, clusters, worth, max_cosine=max_cosine, budget=160)
    assert np.flatnonzero(found.kept_N).tolist() == wanted and 0 < len(wanted) < 160
    assert {row for row in range(160) if found.nearest_N[row] >= 0} == set(near)
    for row, (_, cosine) in near.items():
        assert found.cosine_N[row] == pytest.approx(cosine, abs=1e-5)
        assert vectors[row] @ vectors[found.nearest_N[row]] == pytest.approx(cosine, abs=1e-5)
    assert [REASONS[fate] for fate in set(found.fate_N.tolist()) - {KEPT}] == ["semantic duplicate"]


def test_the_better_one_of_two_like_rows_stays_and_of_equal_ones_the_earlier():
    like = at_angles(0, 1, 90)
    assert fates(like, [0, 0, 0], [1, 2, 1]) == [DUPLICATE, KEPT, KEPT]
    assert fates(like, [0, 0, 0], [1, 1, 1]) == [KEPT, DUPLICATE, KEPT]
    assert fates(like, [0, 1, 0], [1, 2, 1]) == [KEPT, KEPT, KEPT]  # of another cluster


def test_a_duplicate_of_a_duplicate_stays_where_it_is_unlike_what_is_kept():
    """0° is kept, 15° is too like it (0.966), 30° is like 15° alone (to 0° 0.866)."""
    assert fates(at_angles(0, 15, 30), [0, 0, 0], [3, 2, 1]) == [KEPT, DUPLICATE, KEPT]


def test_a_limit_of_1_takes_none_for_another_and_one_of_0_keeps_what_is_no_nearer_than_a_right_angle():
    rows = at_angles(0, 0, 45, 90, 180)
    assert fates(rows, [0] * 5, [1] * 5, max_cosine=1) == [KEPT] * 5
    exact = np.array([[1, 0], [1, 0], [0.6, 0.8], [0, 1], [-1, 0]], np.float32)
    assert fates(exact, [0] * 5, [1] * 5, max_cosine=0) == [KEPT, DUPLICATE, DUPLICATE, KEPT, KEPT]


def test_rows_of_low_quality_are_not_looked_at_and_make_no_other_row_a_duplicate():
    found = choose(
        at_angles(0, 1), np.zeros(2, int), np.array([2.0, 1.0]), max_cosine=0.9, budget=2, low_N=np.array([True, False])
    )
    assert found.fate_N.tolist() == [LOW, KEPT] and found.nearest_N.tolist() == [-1, -1]


def test_budgets_by_cluster_alike_or_by_worth_alone():
    """Eight unlike rows, six of them in the first cluster; the second cluster's are the worst."""
    rows, clusters, worth = np.eye(8, dtype=np.float32), [0] * 6 + [1] * 2, [8, 7, 6, 5, 4, 3, 2, 1]
    kept = {spread: np.flatnonzero(np.array(fates(rows, clusters, worth, budget=4, spread=spread)) == KEPT).tolist()
            for spread in ("proportional", "even", "best")}  # fmt: skip
    assert kept == {"proportional": [0, 1, 2, 6], "even": [0, 1, 6, 7], "best": [0, 1, 2, 3]}
    assert fates(rows, clusters, worth, budget=0) == [OVER] * 8
    assert fates(rows, clusters, worth, budget=99) == [KEPT] * 8


def test_quotas_of_one_cluster_that_lacks_rows_go_to_the_others():
    there, sizes = np.array([1, 5, 0, 4]), np.array([10, 5, 3, 4])
    assert quotas(there, sizes, 6, "proportional").tolist() == [1, 3, 0, 2]
    assert quotas(there, sizes, 7, "even").tolist() == [1, 3, 0, 3]
    for spread in ("proportional", "even"):
        for budget in range(13):
            found = quotas(there, sizes, budget, spread)
            assert found.sum() == min(budget, 10) and (found <= there).all()
    assert quotas(np.array([], int), np.array([], int), 3, "even").tolist() == []


@pytest.mark.parametrize("spread", ["proportional", "even", "best"])
def test_of_many_clusters_of_one_row_the_worthiest_are_kept(spread):
    rows, worth = np.eye(6, dtype=np.float32), [1, 4, 2, 6, 3, 5]
    found = fates(rows, range(6), worth, budget=3, spread=spread)
    assert [at for at, fate in enumerate(found) if fate == KEPT] == [1, 3, 5]


def test_nothing_to_choose_among_and_identical_vectors_in_half_precision():
    empty = choose(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0), max_cosine=0.9, budget=3)
    assert len(empty.fate_N) == 0 and not empty.kept_N.any()
    rows = unit_rows(np.random.default_rng(0).standard_normal((1, 50))).astype(np.float16).repeat(3, 0)
    for keep in (keep_apart, farthest_first):
        kept, near, cosine = keep(unit_rows(rows), 0.999)
        assert kept.tolist() == [0] and near.tolist() == [-1, 0, 0]
        assert np.isnan(cosine[0]) and cosine[1] == pytest.approx(1, abs=1e-6)
        assert keep(unit_rows(rows), 1.0)[0].tolist() == [0, 1, 2]


def test_without_worth_the_least_alike_go_first():
    """By hand: the mean of 0°, 12°, 20° and 90° points to 28°, so 20° is first; then 90°, 70° away; 0°; 12° is last."""
    rows = at_angles(0, 12, 20, 90)
    kept, near, cosine = farthest_first(rows, 1.0)
    assert kept.tolist() == [2, 3, 0, 1] and near.tolist() == [2, 2, -1, 2]
    assert cosine[[0, 1, 3]].tolist() == pytest.approx(np.cos(np.radians([20, 8, 70])), abs=1e-6)
    assert farthest_first(rows, 0.98)[0].tolist() == [2, 3, 0]  # cos 8° is 0.990
    found = choose(rows, np.zeros(4, int), None, max_cosine=0.98, budget=2)
    assert found.fate_N.tolist() == [OVER, DUPLICATE, KEPT, KEPT]
    two = np.array([0, 0, 1, 1])
    best = choose(np.eye(4, dtype=np.float32), two, None, max_cosine=0.9, budget=2, spread="best")
    assert best.kept_N.tolist() == [True, False, True, False]  # the first of each cluster


@pytest.mark.parametrize("max_cosine", [0.2, 0.7])
def test_farthest_first_is_the_plain_search(max_cosine):
    vectors = unit_rows(np.random.default_rng(2).standard_normal((40, 4)))
    kept = [int((vectors @ vectors.mean(0)).argmax())]
    while len(kept) < 40:
        alike = {row: max(float(vectors[row] @ vectors[k]) for k in kept) for row in set(range(40)) - set(kept)}
        row = min(sorted(alike), key=alike.get)
        if alike[row] > max_cosine:
            break
        kept.append(row)
    found, near, _ = farthest_first(vectors, max_cosine)
    assert found.tolist() == kept and 1 < len(kept) < 40
    assert all(near[row] in kept for row in range(40) if row != kept[0])
