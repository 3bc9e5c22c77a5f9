"""Trying whether a folder can be written, by the renames of what will be written there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from align.runs.files import atomic_dir


@contextmanager
def draft(target: Path) -> Iterator[Path]:
    """An atomic folder beside `target`, removed once it has its name; where the folder of `target` is not there yet,
    beside the first one above it that is missing, so that nobody sees folders come and go.

    Raises:
        StorageError: nothing can be written there.
    """
    first = next(path for path in (target, *target.parents) if path.parent.exists())
    place = first.parent / f".{first.name}.draft"
    try:
        with atomic_dir(place) as folder:
            yield folder
    finally:
        shutil.rmtree(place, ignore_errors=True)


def prove_folder(folder: Path) -> None:
    """Raises StorageError where nothing can be written into `folder`."""
    with draft(folder / "file"):
        pass
