"""One writer at a time: what a run does in an output folder is guarded by locks in `<output_dir>/.locks/`.

A lock ends with the process that holds it, killed or not; its empty file stays. Different stages of one recipe have
different locks, so `align/sft.py` and `align/rm.py --stage pmp` may run side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from align.runtime.errors import AlignError
from align.runtime.files import storage_errors
from align.runtime.ranks import is_main

CHAIN = "chain"


class FolderInUseError(AlignError, RuntimeError):
    """Another process is at work in the output folder."""


@contextmanager
def locked(output_dir: str | Path, names: Iterable[str]) -> Iterator[None]:
    """Hold the locks `names` of `output_dir` (made when it is missing); only the first rank does.

    Raises:
        FolderInUseError: another process holds one of them.
        StorageError: the folder cannot be written to.
    """
    with ExitStack() as held:
        for name in names if is_main() else ():
            held.enter_context(_lock(Path(output_dir), name))
        yield


@contextmanager
def _lock(output_dir: Path, name: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    file = output_dir / ".locks" / f"{name}.lock"
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            what = "a chain" if name == CHAIN else f"'{name}'"
            advice = "wait for it or stop it, or choose another output"
            raise FolderInUseError(f"another process is running {what} in {output_dir}: {advice}") from None
    try:
        yield
    finally:
        lock.release()
