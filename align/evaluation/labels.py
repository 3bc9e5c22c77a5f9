"""How well labels are told: accuracy, and precision, recall and F1 of each, with 95 % intervals. Plain numbers.

The intervals are Wilson's. F1 has one too, since it is a rising function of a share: with J = TP / (TP + FP + FN), of
the texts that have the label or were given it, F1 = 2 J / (1 + J).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from align.evaluation.shares import wilson

Figure = tuple[float, float, float]  # a value and its interval


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """Of one label.

    Attributes:
        right: texts that have it and were given it; `given`: that were given it; `rows`: that have it.
    """

    label: str
    right: int
    given: int
    rows: int

    @property
    def precision(self) -> Figure:
        return _share(self.right, self.given)

    @property
    def recall(self) -> Figure:
        return _share(self.right, self.rows)

    @property
    def f1(self) -> Figure:
        value, low, high = _share(self.right, self.given + self.rows - self.right)
        return _f1(value), _f1(low), _f1(high)


def _share(right: int, number: int) -> Figure:
    return (right / number if number else 0.0, *wilson(right, number))


def _f1(share: float) -> float:
    return 2 * share / (1 + share)


def label_figures(
    labels: Sequence[str], owned: Sequence[Sequence[str]], given: Sequence[Sequence[str]]
) -> list[LabelFigures]:
    """Of each label, in the given order.

    Args:
        owned, given: the different labels that each text has, and was given.
    """
    rows = Counter(label for own in owned for label in own)
    said = Counter(label for some in given for label in some)
    right = Counter(label for own, some in zip(owned, given, strict=True) for label in set(own) & set(some))
    return [LabelFigures(label, right[label], said[label], rows[label]) for label in labels]


def pooled(figures: Sequence[LabelFigures]) -> LabelFigures:
    """All labels as one (micro average): every text with every label of its own counts alike."""
    sums = (sum(getattr(one, name) for one in figures) for name in ("right", "given", "rows"))
    return LabelFigures("all", *sums)


def macro_f1(figures: Sequence[LabelFigures]) -> float:
    """The mean F1 of the labels that some text has: every label counts alike."""
    values = [one.f1[0] for one in figures if one.rows]
    return sum(values) / len(values) if values else 0.0


def accuracy(owned: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> Figure:
    """The share of texts that were given just the labels that they have."""
    right = sum(set(own) == set(some) for own, some in zip(owned, given, strict=True))
    return _share(right, len(owned))


def confusions(owned: Sequence[str], given: Sequence[str]) -> Counter[tuple[str, str]]:
    """How often a text of one label was given one, the same or another: by (own, given)."""
    return Counter(zip(owned, given, strict=True))
