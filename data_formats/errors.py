"""The errors a user can meet. Every one is an `AlignError` and also the builtin it stands for.

Each message is one sentence that names the file, row, key or value at fault and says what to do. The command line
prints it without a traceback and exits with 1. Rooms add their own leaves beside their code.
"""

from __future__ import annotations

from pathlib import Path

from align.runtime.errors import AlignError as AlignError
from align.runtime.errors import MissingFileError as MissingFileError
from align.runtime.errors import StorageError as StorageError

MEBIBYTE = 1 << 20
MOST = 64 * MEBIBYTE  # bytes of a row, where nothing else is said


class RowNumber(int):
    """The 1-based number of a row in a file whose rows are not lines."""


class DataError(AlignError, ValueError):
    """A file or row that cannot be read as what it claims to be.

    Args:
        problem: what was found and what was expected.
        path: the file.
        line: the 1-based line; a `RowNumber` for formats without lines.
        field: the field at fault.
    """

    def __init__(
        self, problem: str, *, path: str | Path | None = None, line: int | None = None, field: str | None = None
    ):
        self.problem, self.path, self.line, self.field = problem, path, line, field
        super().__init__(f"{path}{', ' if self._place() else ': '}{self.placed}" if path is not None else self.placed)

    def _place(self) -> str:
        number = f"{'row' if isinstance(self.line, RowNumber) else 'line'} {self.line}" if self.line is not None else ""
        return ", ".join(part for part in (number, f"field '{self.field}'" if self.field else "") if part)

    @property
    def placed(self) -> str:
        """The problem with its line and field, without the file."""
        place = self._place()
        return f"{place}: {self.problem}" if place else self.problem


class TooLargeError(DataError):
    """A row larger than was allowed.

    Args:
        most: the limit, in bytes.
    """

    def __init__(self, most: int, *, path: str | Path | None = None, line: int | None = None, field: str | None = None):
        problem = f"larger than {most / MEBIBYTE:g} MiB; if it is meant to be, raise max_row_mb (--max-row-mb)"
        super().__init__(problem, path=path, line=line, field=field)


class EmptyDatasetError(DataError):
    """A source gave no record at all, or none that survived."""
