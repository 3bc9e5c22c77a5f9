"""Reading the recipe that a run has left, without trusting it: it may be torn, or edited by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.runtime.json_files import RunFileError, read_text


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a stage's `recipe.yaml`, empty where there is none. Raises RunFileError."""
    from align.recipe.errors import RecipeError  # checkpoints are written and read without YAML and pydantic
    from align.recipe.text import parse

    text = read_text(path)
    try:
        found = parse(text, str(path))[0] if text else {}
    except RecipeError as error:
        raise RunFileError(f"{path} is not a whole recipe ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict):
        raise RunFileError(f"{path} is not a whole recipe")
    return found
