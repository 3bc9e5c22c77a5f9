"""The recipes that come with the project: in `recipes/` of a checkout, inside the wheel as `align/_recipes`."""

from __future__ import annotations

from pathlib import Path

from align.recipe.problems import did_you_mean
from data_formats.errors import MissingFileError

_PACKAGE = Path(__file__).resolve().parents[1]


def recipes_folder() -> Path:
    """Where the shipped recipes lie."""
    inside_wheel = _PACKAGE / "_recipes"
    return inside_wheel if inside_wheel.is_dir() else _PACKAGE.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name to file, sorted by name."""
    return {file.stem: file for file in sorted(recipes_folder().glob("*.yaml"))}


def find_recipe(path: str | Path) -> Path:
    """The file that `path` means: an existing file, else the shipped recipe of that name. Raises MissingFileError."""
    file = Path(path).expanduser()
    if file.is_file():
        return file
    shipped = shipped_recipes()
    name = str(path)
    if name in shipped:
        return shipped[name]
    if file.is_dir():
        raise MissingFileError(f"{path} is a folder; name a recipe file (.yaml)")
    near = did_you_mean(file.stem, shipped)
    hint = f"did you mean '{near}'? " if near else ""
    raise MissingFileError(f"{path}: no such recipe file; {hint}Shipped recipes: {', '.join(shipped)}")
