"""The error of a model folder that cannot be used."""

from __future__ import annotations

from align.runtime.errors import AlignError


class ModelFileError(AlignError, ValueError):
    """A model folder is there, but a file in it is missing, cut short, or not what it should be."""


class VocabularyError(ModelFileError):
    """A tokenizer with ids that the model has no embedding for."""


def reason_of(error: BaseException) -> str:
    """What a foreign library's error says: its first line, and the next where the first only announces it."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{first} {others[0]}" if first.endswith(":") and others else first


class FlatScoresError(AlignError, ValueError):
    """Scores that do not vary, where their deviation is to divide by."""
