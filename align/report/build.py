"""Run folder -> `<output_dir>/report/index.html` with its figures; opened from disk, it needs nothing else.

Each file is written under a temporary name and renamed, the page last: whoever opens it sees a whole page, and a build
that is killed is repaired by the next. Files of other names in `report/` are left alone.
"""

from __future__ import annotations

from pathlib import Path

from align.runs.run_files import read_run
from align.runtime.errors import MissingFileError, StorageError
from align.runtime.files import atomic_file
from align.runtime.paths import typed_path


def build_report(output_dir: str | Path) -> Path:
    """Write the report of the run in `output_dir`; returns the path of its `index.html`.

    Works on unfinished runs and on any chain: what is not there is named in its section.

    Raises:
        MissingFileError: `output_dir` is no folder.
        StorageError: writing failed; the files of an older report are whole.
    """
    from align.report.figures import FIGURES, draw_all
    from align.report.page import render

    root = typed_path(output_dir)
    if not root.is_dir():
        raise MissingFileError(f"{root}: no such run folder; name the output_dir of a recipe that has run")
    run, folder = read_run(root), root / "report"
    images = draw_all(run)
    for name, data in images.items():
        _write(folder / name, data)
    index = folder / "index.html"
    _write(index, render(run, images).encode("utf-8"))
    for name in {file for figure in FIGURES for file in figure.files} - set(images):
        (folder / name).unlink(missing_ok=True)  # a figure of an older report whose data are gone
    return index


def _write(path: Path, data: bytes) -> None:
    try:
        with atomic_file(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); the older report is whole"
        ) from error
