"""Figures of labels by hand."""

from __future__ import annotations

import pytest

from align.evaluation.labels import accuracy, confusions, label_figures, macro_f1, pooled
from align.evaluation.shares import wilson

OWNED = [("a",), ("a",), ("a", "b"), ("b",), ()]
GIVEN = [("a",), ("b",), ("a",), ("b",), ("c",)]


def test_figures_by_hand():
    a, b, c = label_figures(("a", "b", "c"), OWNED, GIVEN)
    assert (a.right, a.given, a.rows) == (2, 2, 3) and (b.right, b.given, b.rows) == (1, 2, 2)
    assert a.precision == (1.0, *wilson(2, 2)) and a.recall == (2 / 3, *wilson(2, 3))
    assert a.f1[0] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3)) and b.f1[0] == pytest.approx(0.5)
    low, high = wilson(2, 3)  # of the three texts that have a or were given it two are right
    assert a.f1[1:] == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))
    assert c.precision[0] == c.recall[0] == c.f1[0] == 0.0
    assert macro_f1([a, b, c]) == pytest.approx((0.8 + 0.5) / 2)  # no text has c
    together = pooled([a, b, c])
    assert (together.right, together.given, together.rows) == (3, 5, 5) and together.f1[0] == pytest.approx(0.6)
    assert accuracy(OWNED, GIVEN) == (0.4, *wilson(2, 5))
    assert confusions(["a", "a", "b"], ["a", "b", "b"]) == {("a", "a"): 1, ("a", "b"): 1, ("b", "b"): 1}
