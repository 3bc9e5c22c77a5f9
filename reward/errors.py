"""The error of a model folder that cannot be used."""

from __future__ import annotations

from align.runtime.errors import AlignError


class ModelFileError(AlignError, ValueError):
    """A model folder is there, but a file in it is missing, cut short, or not what it should be."""


class VocabularyError(ModelFileError):
    """A tokenizer with ids that the model has no embedding for."""


class FlatScoresError(AlignError, ValueError):
    """Scores that do not vary, where their deviation is to divide by."""
