"""One owned server for several ranks: only the owner can start it again, and any rank may be the one that sees it fail.

In the server's private folder lie `turn` (how often it has come up with weights, and where it listens) and, when a
rank cannot go on, `wanted-N`, the wish for a turn after N. The owner looks for wishes twice a second, or restarts by
itself; either way once for each turn. Ranks on other machines have no such folder: they need servers given by URL.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rollouts.errors import RolloutError
from rollouts.vllm.http import ServerGone
from rollouts.vllm.server import VLLMServer

logger = logging.getLogger(__name__)

_LOOK = 0.5  # seconds


class Keeper:
    """The owner's: starts the server again, at most `max_restarts` times.

    Args:
        server: a running one.
        max_restarts: in the whole run.
        dress: gives the new server its weights; raises ServerGone when it failed again.
        watch: other ranks use the server too.
    """

    def __init__(self, server: VLLMServer, max_restarts: int, dress: Callable[[], None], *, watch: bool):
        self.server, self.max_restarts, self._dress = server, max_restarts, dress
        self.turn, self.restarts = 0, 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._announce()
        if watch:
            threading.Thread(target=self._watch, daemon=True, name="vllm-keeper").start()

    @property
    def url(self) -> str:
        """Where it listens now."""
        assert self.server.address is not None
        return self.server.address.url

    def cut(self, turn: int) -> None:
        """Kills the server of `turn`, so that nobody waits for its answers any longer."""
        if turn == self.turn and not self._lock.locked():
            self.server.kill()

    def recover(self, turn: int, reason: str) -> None:
        """Brings it back, unless that has happened since `turn`.

        Raises:
            RolloutError: it has been restarted too often, or does not start.
        """
        with self._lock:
            while turn == self.turn:
                if self._over.is_set():
                    raise RolloutError("the engine was closed")
                if self.restarts >= self.max_restarts:
                    self._give_up(
                        f"the vLLM server {reason}, and was started again {self.restarts} times already "
                        f"(max_restarts): its log is {self.server.log}"
                    )
                self.restarts += 1
                logger.warning(
                    "the vLLM server %s: it is started again (%d of %d)", reason, self.restarts, self.max_restarts
                )
                try:
                    self.server.restart()
                    self._dress()
                except ServerGone as gone:
                    reason = f"came up and {gone}"
                    continue
                except RolloutError as error:
                    self._give_up(str(error))
                self.turn += 1
                self._announce()

    def close(self) -> None:
        """Stops watching and ends the server."""
        self._over.set()
        self.server.stop()

    def _give_up(self, problem: str) -> None:
        with contextlib.suppress(OSError):
            _put(self.server.home / "given-up", problem)
        raise RolloutError(problem)

    def _announce(self) -> None:
        _put(self.server.home / "turn", f"{self.turn} {self.url}")

    def _watch(self) -> None:
        while not self._over.wait(_LOOK) and not (self.server.home / "given-up").exists():
            wish = self.server.home / f"wanted-{self.turn}"
            if wish.exists():
                turn, reason = self.turn, wish.read_text(encoding="utf-8")
                with contextlib.suppress(RolloutError):  # left for the others in `given-up`
                    self.cut(turn)
                    self.recover(turn, reason)


class Guest:
    """The other ranks': wishes for a restart and waits for it.

    Args:
        home: the server's private folder.
        patience: seconds until the owner must have restarted it.
    """

    def __init__(self, home: Path, patience: float):
        self.home, self.patience = home, patience

    @property
    def turn(self) -> int:
        """The server's turn now."""
        return int(self._said()[0])

    @property
    def url(self) -> str:
        """Where it listens now."""
        return self._said()[1]

    def cut(self, turn: int) -> None:
        """Asks the owner to kill it and start it again."""
        self._wish(turn, "failed on another rank")

    def recover(self, turn: int, reason: str) -> None:
        """Waits for the turn after `turn`.

        Raises:
            RolloutError: it does not come.
        """
        self._wish(turn, reason)
        deadline = time.monotonic() + self.patience
        while self.turn == turn:
            with contextlib.suppress(OSError):
                raise RolloutError((self.home / "given-up").read_text(encoding="utf-8"))
            if time.monotonic() > deadline:
                raise RolloutError(f"the vLLM server {reason}, and its owner did not start it again")
            time.sleep(_LOOK)

    def close(self) -> None:
        """Nothing is this rank's."""

    def _said(self) -> list[str]:
        try:
            return (self.home / "turn").read_text(encoding="utf-8").split(" ", 1)
        except OSError:
            raise RolloutError("the rank that owns the vLLM server has closed it") from None

    def _wish(self, turn: int, reason: str) -> None:
        with contextlib.suppress(OSError):
            _put(self.home / f"wanted-{turn}", reason)


def _put(path: Path, text: str) -> None:
    """Writes a file that nobody sees half written."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
