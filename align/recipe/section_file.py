"""A section of a recipe that stands by itself: in a file of its own, or as keys that a command line gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from align.recipe.errors import RecipeError, describe
from align.recipe.section import Section
from align.recipe.text import parse, read

S = TypeVar("S", bound=Section)


def read_section(kind: type[S], path: str | Path) -> S:
    """The section that a YAML file holds.

    Raises:
        MissingFileError: no such file.
        RecipeError: not YAML, or unknown keys and values, all of them.
    """
    data, _ = parse(read(Path(path), str(path)), str(path))
    return checked_section(kind, data if data is not None else {}, str(path))


def checked_section(kind: type[S], found: Any, name: str) -> S:
    """The section of these keys; `name` says where they are from. Raises RecipeError: unknown ones, or bad values."""
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise RecipeError([str(problem) for problem in describe(kind, error.errors())], name) from None
