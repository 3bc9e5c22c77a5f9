"""Asked to stop: by a person (Ctrl-C), or by a scheduler (SIGTERM before a kill, SIGUSR1 before the time limit).

While a stage trains, the first signal sets a flag; the trainer looks at it between steps, saves and stops. Anywhere
else it ends the program at once, with what is finished kept. A second Ctrl-C raises KeyboardInterrupt while training
too; launchers pass on a Ctrl-C that the terminal has already sent to every process, so those within a second of the
first count as the same one. A scheduler's second signal (SIGUSR1 some minutes before the limit, SIGTERM at it) changes
nothing: the save goes on.

The exit code says who asked. After Ctrl-C it is 130, as of any program. After a scheduler's signal it is 75, which is
EX_TEMPFAIL of BSD's sysexits.h ("the user is invited to retry"): no shell, launcher or Python gives it by itself, and
128 + the signal's number would be that of a process which was killed and saved nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from align.runtime.ranks import any_rank

logger = logging.getLogger(__name__)

INTERRUPTED, REQUEUE = 130, 75  # exit codes: after Ctrl-C, and of what a scheduler should start again
SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1)

_SAME_SIGNAL_SECONDS = 1.0


class Stopped(KeyboardInterrupt):
    """What was asked to stop has stopped, and the same command goes on; ends the program with `code`."""

    def __init__(self, what: str = "", code: int = INTERRUPTED):
        super().__init__(what)
        self.code = code


Handler = Callable[[int, FrameType | None], None]


@contextmanager
def handling(numbers: Sequence[signal.Signals], handler: Handler) -> Iterator[None]:
    """These signals go to `handler`, and afterwards where they went before. Outside the main thread nothing changes."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former if former is not None else signal.SIG_DFL)


@contextmanager
def until_told() -> Iterator[None]:
    """Around what serves until somebody ends it: for it Ctrl-C, SIGTERM and SIGUSR1 are an end like another."""
    with suppress(KeyboardInterrupt), handling(SCHEDULERS, signal.default_int_handler):
        yield


class StopFlag:
    """Context manager that watches for Ctrl-C and a scheduler; outside the main thread it only holds the flag."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._scheduler = False
        self._handling = ExitStack()
        self._closers: list[Callable[[], None]] = []

    def is_set(self) -> bool:
        """Whether this process was asked to stop. Several ranks ask `any_rank(flag.is_set())`, so that all agree."""
        return self._first is not None

    def set(self) -> None:
        """Ask for a stop from the program itself."""
        if self._first is None:
            self._first = time.monotonic()

    def code(self) -> int | None:
        """The exit code of a stop that any rank was asked for, None without one. Collective: every rank calls it."""
        if not any_rank(self.is_set()):
            return None
        return REQUEUE if any_rank(self._scheduler) else INTERRUPTED

    def at_exit(self, close: Callable[[], None]) -> None:
        """Call `close` when the block ends, however it ends (a progress bar must not outlive its stage)."""
        self._closers.append(close)

    def __enter__(self) -> StopFlag:
        self._handling.enter_context(handling((signal.SIGINT, *SCHEDULERS), self._handle))
        return self

    def __exit__(self, *error: object) -> None:
        self._handling.close()
        while self._closers:
            self._closers.pop()()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._scheduler |= number in SCHEDULERS
        if self._first is None:
            self.set()
            more = "" if self._scheduler else " (press Ctrl-C again to stop at once)"
            logger.warning("stopping after this step and saving%s", more)
        elif number == signal.SIGINT and time.monotonic() - self._first > _SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt


class Heed:
    """A scheduler's signal ends the program at once, until `deaf()`, by which time something else has ended it."""

    def __init__(self, say: Callable[[str], None]):
        self._say, self._process, self._deaf = say, os.getpid(), False

    def deaf(self) -> None:
        """Ignore the signals from here on: torchrun sends SIGTERM to ranks that end later than the first."""
        self._deaf = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child, whose parent ends it by SIGTERM
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self._deaf:
            self._deaf = True
            with suppress(Exception):  # the stream may be in the middle of a line
                self._say(f"asked to stop by {signal.Signals(number).name}")
                sys.stdout.flush()
            os._exit(REQUEUE)


@contextmanager
def heeding_schedulers(say: Callable[[str], None]) -> Iterator[Heed]:
    """SIGTERM and SIGUSR1 end the program with REQUEUE, after `say(why)`. Outside the main thread they are not heeded.

    It ends as by a kill, which everything that is written here bears, and not by an exception: raised while a library
    written in C++ or Rust is imported, which takes a good part of a short job, that aborts the process.
    """
    heed = Heed(say)
    with handling(SCHEDULERS, heed._handle):
        yield heed
