"""The recipes that come with the project: in `recipes/` of a checkout, inside the wheel as `align/_recipes`."""

from __future__ import annotations

from pathlib import Path

from align.recipe.errors import did_you_mean
from align.runtime.errors import MissingFileError, StorageError
from align.runtime.paths import typed_path
from align.runtime.table import table

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
    file = typed_path(path)
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
    raise MissingFileError(f"{path}: no such recipe file; {hint}shipped recipes are {', '.join(shipped)}")


def find_shipped(name: str) -> Path:
    """The file of a shipped recipe. Raises MissingFileError."""
    shipped = shipped_recipes()
    if name not in shipped:
        near = did_you_mean(name, shipped)
        hint = f"did you mean '{near}'?" if near else f"there are {', '.join(shipped)}"
        raise MissingFileError(f"no shipped recipe is called '{name}'; {hint}")
    return shipped[name]


def describe_recipes() -> str:
    """Names and first comment lines."""
    rows = []
    for name, file in shipped_recipes().items():
        with file.open(encoding="utf-8") as lines:
            rows.append((name, next(lines).lstrip("# ").rstrip()))
    return table(("recipe", "what it is"), rows)


def copy_recipe(name: str, dest: str | Path) -> Path:
    """Copy a shipped recipe to a new file, or into a folder, and return the file. Raises StorageError if it exists."""
    source, file = find_shipped(name), typed_path(dest)
    file = file / source.name if file.is_dir() else file
    try:
        with file.open("xb") as out:
            out.write(source.read_bytes())
    except FileExistsError:
        raise StorageError(f"{file} exists already; remove it or choose another name") from None
    except OSError as error:
        raise StorageError(f"{file}: cannot be written ({error.strerror})") from None
    return file
