"""Trying whether a folder can be written, by the renames of what will be written there."""

from __future__ import annotations

from pathlib import Path

from align.runs.files import write_text
from data_formats.errors import StorageError

DRAFT, SIZE = ".draft", 1 << 12


def prove_folder(folder: Path) -> None:
    """Write a file into `folder` (where that is not there yet, into the first one above it that is) and remove it.

    No folder is made: whoever watches the run sees none come and go.

    Raises:
        StorageError: nothing can be written there.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise StorageError(f"{there} is a file: move it away, a folder of that name will be written")
    write_text(there / DRAFT, "." * SIZE)
    (there / DRAFT).unlink(missing_ok=True)
