"""Ctrl-C that finishes the step.

The first Ctrl-C (or SIGTERM, which schedulers send before they kill) sets a flag; the trainer looks at it between
steps, saves and stops. The second one raises KeyboardInterrupt at once. Launchers pass on a Ctrl-C that the terminal
has already sent to every process, so signals within a second of the first count as the same one.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

logger = logging.getLogger(__name__)

_SAME_SIGNAL_SECONDS = 1.0


class StopFlag:
    """Context manager that watches for SIGINT and SIGTERM; outside the main thread it only holds the flag."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._previous: dict[int, object] = {}
        self._closers: list[Callable[[], None]] = []

    def is_set(self) -> bool:
        """Whether this process was asked to stop. Several ranks ask `any_rank(flag.is_set())`, so that all agree."""
        return self._first is not None

    def set(self) -> None:
        """Ask for a stop from the program itself."""
        if self._first is None:
            self._first = time.monotonic()

    def at_exit(self, close: Callable[[], None]) -> None:
        """Call `close` when the block ends, however it ends (a progress bar must not outlive its stage)."""
        self._closers.append(close)

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()
        while self._closers:
            self._closers.pop()()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._first is None:
            self.set()
            logger.warning("stopping after this step and saving (press Ctrl-C again to stop at once)")
        elif time.monotonic() - self._first > _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
