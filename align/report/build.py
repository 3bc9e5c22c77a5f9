"""Run folder -> `<output_dir>/report/index.html`, one file that needs nothing else.

It is written under a temporary name and renamed: whoever opens it sees a whole page. Files of other names in `report/`
are left alone, but for the pictures beside the pages of older versions.
"""

from __future__ import annotations

from pathlib import Path

from align.runs.run_files import read_run
from align.runtime.errors import MissingFileError, StorageError
from align.runtime.files import atomic_file
from align.runtime.paths import typed_path

FORMER = ("losses", "preference", "accuracy", "scores", "reliability", "rejection", "ppo", "wins")
"""The pictures that older versions wrote beside the page."""


def build_report(output_dir: str | Path) -> Path:
    """Write the report of the run in `output_dir`; returns the path of its `index.html`.

    Works on unfinished runs and on any chain: what is not there is named in its section.

    Raises:
        MissingFileError: `output_dir` is no folder.
        StorageError: writing failed; the files of an older report are whole.
    """
    from align.report.figures import draw_all
    from align.report.page import render

    root = typed_path(output_dir)
    if not root.is_dir():
        raise MissingFileError(f"{root}: no such run folder; name the output_dir of a recipe that has run")
    run, index = read_run(root), root / "report" / "index.html"
    _write(index, render(run, draw_all(run)).encode("utf-8"))
    for name in FORMER:
        for file in (f"{name}.png", f"{name}-dark.png"):
            index.with_name(file).unlink(missing_ok=True)
    return index


def _write(path: Path, data: bytes) -> None:
    try:
        with atomic_file(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); the older report is whole"
        ) from error
