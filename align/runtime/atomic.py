"""The one way in which files and folders come to their names: written under a temporary one, then renamed.

What is written lies beside its target as `.NAME.tmp-…`, is flushed to the disk (fsync) and takes the name in one step,
so a reader sees the old or the new content, whole. A killed process leaves at most such a temporary name, which the
next writer of the same target removes; `align.runs.files.sweep` finds all that lie in a folder. Inside a folder that
waits for its own name nothing needs a second one (`is_temporary`).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO

_NAME = re.compile(r"\..+\.tmp-[^.]*")
_OF_OLD = re.compile(r"\.+step-\d+\.tmp(\..*)?|\..+\.\w{8}\.tmp")  # as earlier versions called them


def temporary(path: Path, mark: str | None = None) -> Path:
    """A temporary name beside `path`: one of its own, or, with `mark`, the one that all ranks know."""
    return path.parent / f".{path.name}.tmp-{mark or f'{os.getpid()}-{uuid.uuid4().hex[:8]}'}"


def is_temporary(name: str) -> bool:
    """Whether `name` is one of those that are written under."""
    return bool(_NAME.fullmatch(name) or _OF_OLD.fullmatch(name))


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left behind, those of earlier versions too."""
    for ending in (".tmp-*", ".*.tmp", ".tmp"):
        for leftover in path.parent.glob(f".{escape(path.name)}{ending}"):
            remove(leftover)


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO]:
    """An open file that takes the place of `path` when the block ends well, else is removed; makes the folder.

    Args:
        mode: `w` for text (UTF-8, half a surrogate pair as JSON's escape of it, lines end with \\n) or `wb`.

    Raises:
        OSError: what was at `path` before is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    draft, text = temporary(path), {"encoding": "utf-8", "newline": "\n", "errors": "backslashreplace"}
    try:
        with open(draft, mode, **({} if "b" in mode else text)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        remove(draft)
        raise
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Flushes a file, or a folder's list of names, to the disk (where the system can do that for folders)."""
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if path.is_dir() else os.O_RDONLY
    try:
        descriptor = os.open(path, flags)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
