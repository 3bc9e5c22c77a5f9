"""How much memory a run has needed, and what to say when there is not enough."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from align.runtime.errors import AlignError, OutOfMemoryError, reason_of

KEPT_BLOCK = 32 << 20  # bytes; glibc takes no larger threshold
# torch's allocators and the libraries below it raise a plain RuntimeError; these words are all they share
_SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed", "bad_alloc")


def peak_memory_gib() -> float | None:
    """The most memory this process has held so far, GiB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)


def keep_freed_memory() -> bool:
    """Have the C library keep blocks of up to 32 MiB that are freed for the next ones, instead of giving them back to
    the system, which hands out every page of them anew and zeroed; training asks for the same sizes over and over.
    Larger ones, such as logits of a large vocabulary, go back: kept, they would stand beside others at the peak. Of
    glibc alone; what the environment says of its `malloc` stands. Returns whether it was done."""
    told = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if told or platform.libc_ver()[0] != "glibc":
        return False
    libc, trim_threshold, mmap_threshold = ctypes.CDLL(None), -1, -3  # of malloc.h
    return bool(libc.mallopt(mmap_threshold, KEPT_BLOCK) and libc.mallopt(trim_threshold, -1))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever library, says that memory, the host's or a device's, was not enough."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _SHORT_OF_MEMORY)


@contextmanager
def memory_errors(doing: str, *lower: str) -> Iterator[None]:
    """Turns a lack of memory inside the block into one `OutOfMemoryError`; other errors pass unchanged.

    Args:
        doing: what asked for the memory, the sentence's subject.
        lower: the keys that make it ask for less, with their values where these help.
    """
    try:
        yield
    except AlignError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        cure = f"lower {' or '.join(lower)}" if lower else "give the process more, or smaller files, batches or models"
        raise OutOfMemoryError(f"{doing} ran out of memory ({reason_of(error)}): {cure}") from error
