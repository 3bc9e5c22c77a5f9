"""How much memory a run has needed."""

from __future__ import annotations

import sys


def peak_memory_gib() -> float | None:
    """The most memory this process has held so far, GiB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)
