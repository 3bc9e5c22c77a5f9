"""The user's own code that a recipe names, loaded: reward functions, trainers, callbacks. Loading runs the module.

What can be said without running it: `align.recipe.user_code`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerCallback

from align.recipe.section import StageSection
from align.runtime.errors import AlignError, MissingFileError, PathError
from align.runtime.paths import typed_path

Trainer = TypeVar("Trainer")


class UserCodeError(AlignError, ValueError):
    """Code that a recipe names and that cannot be used."""


def load_named(key: str, spec: str) -> Any:
    """What `package.module:name` or `path/to/file.py:name` names; of a file that several keys name, run once.

    Args:
        key: what asks for it, the sentence's subject (`sft.trainer`).

    Raises:
        MissingFileError: no such file.
        UserCodeError: the module fails while it is imported, or does not define the name.
    """
    place, _, name = spec.rpartition(":")
    try:
        module = _file_module(key, typed_path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (MissingFileError, PathError):
        raise
    except (Exception, SystemExit) as error:  # a script without `if __name__ == "__main__"` may call sys.exit()
        told = f"importing {place} failed: {type(error).__name__}: {error}"
        raise UserCodeError(f"{key} {spec}: {told}") from error
    if not hasattr(module, name):
        raise UserCodeError(f"{key} {spec}: {place} has no '{name}'")
    return getattr(module, name)


def _file_module(key: str, file: Path) -> Any:
    if not file.is_file():
        raise MissingFileError(f"{key}: no such file {file}")
    digest = hashlib.sha256(str(file.resolve()).encode() + b"\0" + file.read_bytes()).hexdigest()[:16]
    name = f"_of_the_user_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling inside the file look themselves up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def trainer_class(section: StageSection, stage: str, base: type[Trainer]) -> type[Trainer]:
    """The class that trains the stage: `base`, or the subclass of it that `trainer` names.

    Raises:
        MissingFileError, UserCodeError: it cannot be loaded, or is no subclass of `base`.
    """
    if section.trainer is None:
        return base
    found = load_named(f"{stage}.trainer", section.trainer)
    if not isinstance(found, type) or not issubclass(found, base):
        sentence = f"must be a subclass of {base.__module__}.{base.__name__}, which trains this stage"
        raise UserCodeError(f"{stage}.trainer: {section.trainer} {sentence}")
    return found


def own_callbacks(section: StageSection, stage: str) -> list[TrainerCallback]:
    """An object of every class that `callbacks` names.

    Raises:
        MissingFileError, UserCodeError: one cannot be loaded or made, or is no TrainerCallback.
    """
    made = []
    for index, spec in enumerate(section.callbacks):
        key = f"{stage}.callbacks.{index}"
        found = load_named(key, spec)
        if not isinstance(found, type) or not issubclass(found, TrainerCallback):
            raise UserCodeError(f"{key}: {spec} must be a subclass of transformers.TrainerCallback")
        try:
            made.append(found())
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise UserCodeError(f"{key}: {spec} could not be made without arguments ({told})") from error
    return made
