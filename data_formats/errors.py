"""The errors a user can meet. Every one is an `AlignError` and also the builtin it stands for.

Each message is one sentence that names the file, row, key or value at fault and says what to do. The command line
prints it without a traceback and exits with 1. Rooms add their own leaves beside their code.
"""

from __future__ import annotations

import errno
from pathlib import Path

# torch's allocators and the libraries below it raise a plain RuntimeError; these words are all they share
_SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed", "bad_alloc")


class AlignError(Exception):
    """Root of all errors raised on purpose by this project."""


class MissingFileError(AlignError, FileNotFoundError):
    """A file or folder that was named does not exist."""

    def __str__(self) -> str:  # FileNotFoundError would print its errno tuple
        return str(self.args[0]) if self.args else ""


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
        where = ", ".join(
            part
            for part in (
                str(path) if path is not None else "",
                f"{'row' if isinstance(line, RowNumber) else 'line'} {line}" if line is not None else "",
                f"field '{field}'" if field else "",
            )
            if part
        )
        super().__init__(f"{where}: {problem}" if where else problem)
        self.problem, self.path, self.line, self.field = problem, path, line, field


class EmptyDatasetError(DataError):
    """A source gave no record at all, or none that survived."""


class StorageError(AlignError, OSError):
    """Writing failed (disk full, no permission); what was there before is intact."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever library, says that memory, the host's or a device's, was not enough."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _SHORT_OF_MEMORY)
