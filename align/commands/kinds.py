"""Which kind of record a file holds, when nobody says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_formats import DataError, EmptyDatasetError, MissingFileError, stream
from data_formats.files import ROW_ENDINGS, TEXT_ENDINGS
from data_formats.records import Comparison, Demonstration, Document, Prompt, Record, Scored

# The richest reading first: a row with judged replies is that before it is a prompt.
KINDS: dict[str, type[Record]] = {
    "scored": Scored,
    "comparison": Comparison,
    "demonstration": Demonstration,
    "prompt": Prompt,
    "document": Document,
}
ENDINGS = (*ROW_ENDINGS, *TEXT_ENDINGS)


def files_in(paths: list[Path | str]) -> Iterator[Path | str]:
    """The files and hub datasets that are named, and the files with a known ending in the folders that are, sorted.

    Raises:
        MissingFileError: nothing there.
    """
    for path in paths:
        if isinstance(path, str):
            yield path
        elif path.is_dir():
            yield from (file for file in sorted(path.rglob("*")) if file.is_file() and _known(file))
        elif path.exists():
            yield path
        else:
            raise MissingFileError(f"{path}: no such file or folder; check the path")


def _known(file: Path) -> bool:
    name = file.name.lower().removesuffix(".gz").removesuffix(".zst")
    return name.endswith(ENDINGS)


def kind_of(path: Path | str, options: dict[str, Any]) -> type[Record]:
    """The richest kind as which the first rows of a file can be read.

    Raises:
        DataError: as none; with what each reading found wrong, the same words once.
    """
    problems: dict[str, list[str]] = {}
    for name, kind in KINDS.items():
        try:
            if next(iter(stream(path, kind, **options)), None) is not None:
                return kind
            problem = "no row gives a record"
        except EmptyDatasetError:
            raise
        except DataError as error:
            problem = error.problem
        problems.setdefault(problem, []).append(name)
    if len(problems) == 1:
        raise DataError(next(iter(problems)), path=path)
    words = "; ".join(f"as {' or '.join(names)}: {problem}" for problem, names in problems.items())
    raise DataError(f"cannot be read as any kind of record: {words}", path=path)
