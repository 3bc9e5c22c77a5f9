"""What selection asks of whatever rates rows: quality (how good a row is) and difficulty (how much is to be learnt).

A section of a recipe becomes a scorer by `quality.quality_scorer(section, find_model, folder)` and
`difficulty.difficulty_scorer(section, find_model, folder)`, where `find_model` gives the folder or hub id that a word
of the recipe (a stage, a folder, a hub id) means, and `folder` keeps what was rated. What is missing is said before,
without torch, by `align.recipe.scorer_sections.scorer_problems(key, section)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from data_formats.records import Record

FindModel = Callable[[str], str]


class RecordScorer(Protocol):
    """Rates records; asked for as many as it is given, it may batch them as it likes.

    Attributes:
        name: what its scores are called in files and on pages.
    """

    name: str

    def score(self, records: Sequence[Record]) -> list[float | None]:
        """One finite number a record, the higher the better (or the more difficult); None where it cannot be told."""
        ...
