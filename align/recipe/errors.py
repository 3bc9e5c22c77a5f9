"""The one error of this room: everything that is wrong with a recipe, at once."""

from __future__ import annotations

from collections.abc import Sequence

from data_formats.errors import AlignError


class RecipeError(AlignError, ValueError):
    """A recipe that cannot be used.

    Args:
        problems: one sentence each; those about a key begin with its full path, `ppo.kl_coef: …`.
        source: the recipe's file or name, for the heading.
    """

    def __init__(self, problems: Sequence[str], source: str = "recipe"):
        self.problems, self.source = tuple(problems), source
        if len(self.problems) == 1:
            super().__init__(f"{source}: {self.problems[0]}")
        else:
            listed = "\n".join(f"  {problem}" for problem in self.problems)
            super().__init__(f"{source} has {len(self.problems)} errors:\n{listed}")
