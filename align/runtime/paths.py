"""Paths as people type them: `~` expanded, and what the system cannot look up told in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

from align.runtime.errors import PathError

_SHOWN = 60  # characters of a path that is itself at fault


def typed_path(path: str | Path) -> Path:
    """`path` with `~` expanded. Whether something lies there is not asked, only whether it could be looked up.

    Raises:
        PathError: the home of a user who is unknown, a NUL, a name that is too long, a folder that is closed to us.
    """
    try:
        expanded = Path(path).expanduser()
        os.stat(expanded)
    except (FileNotFoundError, NotADirectoryError):
        return expanded
    except RuntimeError as error:
        raise PathError(f"{_shown(path)}: there is no home folder of that user; write the path out") from error
    except OSError as error:
        raise PathError(f"{_shown(path)}: cannot be looked up ({error.strerror or error})") from error
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise PathError(f"{_shown(path)}: is no path ({error})") from error
    return expanded


def path_problem(path: str | Path) -> str | None:
    """The sentence of `typed_path`, None where the path can be used."""
    try:
        typed_path(path)
    except PathError as error:
        return str(error)
    return None


def _shown(path: str | Path) -> str:
    text = str(path)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
