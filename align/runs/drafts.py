"""Trying whether a folder can be written, by the renames of what will be written there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from align.runs.files import atomic_dir


@contextmanager
def draft(target: Path) -> Iterator[Path]:
    """An atomic folder beside `target`, removed once it has its name, with parents that were not there before.

    Raises:
        StorageError: nothing can be written there.
    """
    made = [parent for parent in target.parents if not parent.exists()]
    place = target.parent / f".{target.name}.draft"
    try:
        with atomic_dir(place) as folder:
            yield folder
    finally:
        shutil.rmtree(place, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def prove_folder(folder: Path) -> None:
    """Raises StorageError where nothing can be written into `folder`."""
    with draft(folder / "file"):
        pass
