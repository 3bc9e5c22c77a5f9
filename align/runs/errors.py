"""The errors of running a stage."""

from __future__ import annotations

from align.runtime.errors import AlignError


class CheckpointError(AlignError, ValueError):
    """A checkpoint that is incomplete, damaged, or not one."""


class TrainingError(AlignError, ArithmeticError):
    """Training cannot go on: a loss or gradient is not finite, or sampling or scoring failed."""


class SavedError(TrainingError):
    """One that says itself what it saved, and in which iteration."""


class LaunchError(AlignError, ValueError):
    """The launcher asked for a way of spreading models over ranks that training does not have."""


class PrecisionError(AlignError, ValueError):
    """Weights that cannot be trained in the precision they are in."""


class OutputError(AlignError, ValueError):
    """A model that could not be saved as it is."""
