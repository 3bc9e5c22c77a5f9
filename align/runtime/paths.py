"""Paths as people type them: `~` expanded, and what the system cannot look up told in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

from align.runtime.errors import PathError
from align.runtime.terminal import shortened


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
        raise PathError(f"{shortened(str(path))}: there is no home folder of that user; write the path out") from error
    except OSError as error:
        raise PathError(f"{shortened(str(path))}: cannot be looked up ({error.strerror or error})") from error
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise PathError(f"{shortened(str(path))}: is no path ({error})") from error
    return expanded
