"""The rooms' own error."""

from __future__ import annotations

from align.runtime.errors import AlignError


class RolloutError(AlignError, RuntimeError):
    """Sampling was asked for something impossible, or the engine could not do it."""
