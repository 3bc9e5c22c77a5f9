"""The root of every error that this project raises on purpose, and the one of paths that cannot be used."""

from __future__ import annotations


class AlignError(Exception):
    """Root of all errors raised on purpose by this project."""


class PathError(AlignError, ValueError):
    """A path that no file or folder can have here: too long, a NUL in it, the home of an unknown user."""
