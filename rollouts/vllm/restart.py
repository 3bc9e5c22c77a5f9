"""The health check of a server that this process owns: one that died or hangs is started again with the last weights.

A thread of the owner checks twice a second. Dead is a process that has ended. Hanging is what those say who ask: a rank
whose request was not answered takes the server's socket away (`take_away`), which nobody can reach from then on. Every
rank, the owner too, then waits until the server at that place answers with the last weights, or its folder is gone:
the owner has given it up, closed it or died.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rollouts.errors import RolloutError
from rollouts.vllm.client import ServerGone
from rollouts.vllm.process import ServerProcess

logger = logging.getLogger(__name__)

CHECK_EVERY = 0.5  # seconds

Start = tuple[int, int] | None  # tells the starts of a server apart: inode and time of its socket


def start_of(socket: Path) -> Start:
    """Which start of the server answers there now."""
    with suppress(OSError):
        found = socket.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def take_away(socket: Path, start: Start) -> None:
    """Asks the owner to start the server again, unless that has happened since `start`."""
    if start is not None and start == start_of(socket):
        socket.unlink(missing_ok=True)


class Restarts:
    """Watches a running server until `close`.

    Args:
        most: restarts in the whole run.
        push: gives the server that came up its weights.

    Attributes:
        problem: why the server was given up; empty while it is not.
    """

    def __init__(self, process: ServerProcess, most: int, push: Callable[[], None]):
        self.process, self.most, self._push = process, most, push
        self.count, self.problem = 0, ""
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="vllm-health").start()

    def close(self) -> None:
        """Stops watching and ends the server."""
        self._over.set()
        self.process.stop()

    def _watch(self) -> None:
        while not self._over.wait(CHECK_EVERY):
            if not self.process.alive:
                reason = "died"
            elif not self.process.socket.exists():
                reason = "hangs"
            else:
                continue
            try:
                self._restart(reason)
            except Exception as error:
                self.problem = str(error)
                if not self._over.is_set():
                    logger.error("%s", error)
                self.process.kill()  # its log stays
                self.process.stop()
                return

    def _restart(self, reason: str) -> None:
        if self.count >= self.most:
            raise RolloutError(
                f"the vLLM server {reason}, and was started again {self.count} times already (max_restarts): its log "
                f"is {self.process.log}"
            )
        self.count += 1
        logger.warning("the vLLM server %s: it is started again (%d of %d)", reason, self.count, self.most)
        self.process.start()
        try:
            self._push()
        except ServerGone as gone:
            logger.warning("the vLLM server came up and %s", gone)
            self.process.kill()  # which the next check finds
