"""`--to 7B`: the recipe with the model of that size, of the series that the recipe has."""

from __future__ import annotations

import re

from align.plan.shapes import PlanError, find_shape, shipped_shapes
from align.recipe import Recipe
from align.scale.cards import ScaleError

SERIES = "Qwen2.5"  # where the recipe's own model has no size of that name
_SIZE = re.compile(r"\d+(\.\d+)?[BM]", re.IGNORECASE)


def model_of_size(recipe: Recipe, size: str) -> str:
    """The name of a known model: of the recipe's series with that size, else of Qwen 2.5; a name is taken as it is.

    Raises:
        ScaleError: there is none.
    """
    if not _SIZE.fullmatch(size):
        try:
            find_shape(size, "--to")
        except PlanError as problem:
            raise ScaleError(f"{problem}; or write a size, as 7B") from None
        return size
    path = recipe.model.path or ""
    organisation, _, name = path.rpartition("/")
    own = re.split(r"-(?=\d+(?:\.\d+)?[BM](?:-|$))", name, maxsplit=1, flags=re.IGNORECASE)[0]
    for series in (own, SERIES):
        if (found := f"{series}-{size.upper()}") in shipped_shapes():
            return f"{organisation or 'Qwen'}/{found}" if series == own else f"Qwen/{found}"
    known = [
        one.removeprefix(f"{series}-")
        for series in (own, SERIES)
        for one in shipped_shapes()
        if one.startswith(f"{series}-")
    ]
    raise ScaleError(f"--to {size}: no model of that size is known; known are {', '.join(dict.fromkeys(known))}")
