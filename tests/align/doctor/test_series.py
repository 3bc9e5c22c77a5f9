import math

import numpy as np
import pytest

from align.doctor.series import Series, correlation


def series(*values):
    return Series(tuple(range(1, len(values) + 1)), tuple(map(float, values)))


def test_parts_take_at_least_one_point():
    found = series(1, 2, 3, 4)
    assert found.first(1 / 3).values == (1, 2) and found.last(1 / 4).values == (4,)
    assert series(7).last(1 / 3).values == (7,)
    assert (found.span, found.part(2, 3).span) == ("steps 1 to 4", "step 3")
    assert found.at({2, 9}).steps == (2,) and found.where(lambda value: value > 2).steps == (3, 4)


@pytest.mark.parametrize(
    ("values", "steps"),
    [((0, 1, 1, 0, 1, 1, 1), (5, 6, 7)), ((1, 1, 0, 1, 1), (1, 2)), ((0, 0), ()), ((1, 1), (1, 2))],
)
def test_the_longest_stretch_and_of_equal_ones_the_first(values, steps):
    assert series(*values).stretch(bool).steps == steps


def test_noise_is_that_around_a_trend():
    """Differences 3, -1, 3, -1, 3: mean square 29 / 5, halved."""
    assert series(0, 3, 2, 5, 4, 7).noise == pytest.approx(math.sqrt(29 / 10))
    assert series(1, 2).noise == 0
    rng = np.random.default_rng(0)
    values = 0.01 * np.arange(3000) + rng.normal(0, 0.5, 3000)
    assert series(*values).noise == pytest.approx(0.5, rel=0.05)
    assert np.std(values) > 5


def test_growth_by_hand():
    """Thirds (0, 1, 0) and (4, 5, 4); differences 1, -1, 2, 0, 0, 2, 1, -1: the noise is sqrt(12 / 16)."""
    grown = series(0, 1, 0, 2, 2, 2, 4, 5, 4).growth()
    assert (grown.before, grown.after) == (pytest.approx(1 / 3), pytest.approx(13 / 3))
    assert grown.up and not grown.down  # 4 is more than 3 * sqrt(12 / 16) * sqrt(2 / 3) = 2.1
    assert series(*(-value for value in (0, 1, 0, 2, 2, 2, 4, 5, 4))).growth().down
    assert not series(0, 4, 0, 4, 0, 4, 0, 4, 1).growth().sure


def test_correlation_is_pearsons_or_none():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=20), rng.normal(size=20)
    found = correlation(tuple(first), tuple(first + second))
    assert found == pytest.approx(np.corrcoef(first, first + second)[0, 1], rel=1e-12)
    assert correlation((1.0,) * 9, tuple(range(9))) is None
    assert correlation((1.0, 2.0), (1.0, 2.0)) is None
