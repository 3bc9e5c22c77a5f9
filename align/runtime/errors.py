"""The errors that every room may raise: the root of all, and those of files, packages and memory."""

from __future__ import annotations


class AlignError(Exception):
    """Root of all errors raised on purpose by this project."""


class PathError(AlignError, ValueError):
    """A path that no file or folder can have here: too long, a NUL in it, the home of an unknown user."""


class MissingFileError(AlignError, FileNotFoundError):
    """A file or folder that was named does not exist."""

    def __str__(self) -> str:  # FileNotFoundError would print its errno tuple
        return str(self.args[0]) if self.args else ""


class StorageError(AlignError, OSError):
    """Writing failed (disk full, no permission); what was there before is intact."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingPackageError(AlignError, ImportError):
    """A package that only some features need is not installed."""


class ShadowedPackageError(AlignError, ImportError):
    """Something else stands before one of our own packages on Python's path."""


class OutOfMemoryError(AlignError, MemoryError):
    """Not enough memory, the host's or a device's; says what to lower."""


def reason_of(error: BaseException) -> str:
    """What a foreign library's error says: its first line, and the next where the first only announces it."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{first} {others[0]}" if first.endswith(":") and others else first
