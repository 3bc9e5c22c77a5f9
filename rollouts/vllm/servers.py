"""The servers that hold one policy's weights: asked by a pool of threads, given weights, waited for when they fail.

Every row waits in one queue. A server has as many threads as it takes requests at once, each of which asks for one row
after another; the first failure of a server ends its threads, and what they asked for waits again. When all threads
have ended, the failed servers are back or given up, and what still waits is asked for. Every row is answered once; as
each has a seed of its own, it does not matter by whom or when.

A server given by URL is asked again after a pause, and left out when it fails twice between two pushes. One of our own
is started again by the rank that owns it (`rollouts.vllm.restart`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rollouts.errors import RolloutError
from rollouts.settings import VLLMSettings
from rollouts.vllm.client import SHORT, Client, ServerGone
from rollouts.vllm.process import ServerProcess
from rollouts.vllm.requests import made_by
from rollouts.vllm.restart import CHECK_EVERY, Restarts, Start, start_of, take_away
from rollouts.vllm.weights import Push, write_push

logger = logging.getLogger(__name__)

GENERATE = "/inference/v1/generate"
STRIKES = 2  # failures after which a server given by URL is left out
PAUSE = 1.0  # seconds before a server given by URL is asked again
ALL = ("weights", "kv_cache")

Body = dict[str, Any]
Answer = dict[str, Any]


@dataclass(eq=False)
class Server:
    """One server as this rank sees it.

    Attributes:
        client: asks it.
        at_once: requests it works on together.
        failures: since the last push.
        lost: why it is given up; None while it lives.
    """

    client: Client
    at_once: int = 1
    failures: int = 0
    lost: str | None = None


class Servers:
    """All servers of an engine.

    Args:
        clients: of each.
        settings: of vLLM.
        mark: begins the name of every version of this engine's weights; nobody else's do.
        socket: of an own server; None for servers given by URL.
        log: of an own server.
        process: the own server, on the rank that owns it.

    Attributes:
        pushed: the last weights; every rank is to set it.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        settings: VLLMSettings,
        mark: str,
        *,
        socket: Path | None = None,
        log: Path | None = None,
        process: ServerProcess | None = None,
    ):
        self.servers, self.settings, self.mark = [Server(client) for client in clients], settings, mark
        self.pushed: Push | None = None
        self._socket, self._log = socket, log
        self._files = threading.Lock()  # of the push: not read while they are written
        self._asleep: set[str] = set()
        self._closed = False
        self._restarts = Restarts(process, settings.max_restarts, self._push_again) if process is not None else None

    def live(self) -> list[Server]:
        """Those not given up.

        Raises:
            RolloutError: none is left.
        """
        found = [server for server in self.servers if server.lost is None]
        if not found:
            reasons = "; ".join(f"{server.client.url} {server.lost}" for server in self.servers)
            raise RolloutError(f"no vLLM server is left: {reasons}")
        return found

    def ask_all(self, bodies: Sequence[Body]) -> list[Answer]:
        """Answers by the pushed weights, in the order of `bodies`. One by other weights is asked for once more.

        Raises:
            RolloutError: no server is left, a request is refused, or an answer is by other weights again.
        """
        self.wake()
        answers: list[Answer | None] = [None] * len(bodies)
        waiting, asked_again = deque(range(len(bodies))), set()
        while waiting:
            failed, stale = self._work(waiting, bodies, answers)
            for server, gone in failed.items():
                self._wait_for(server, gone)
            if again := sorted(asked_again & stale.keys()):
                raise RolloutError(
                    f"the vLLM server {stale[again[0]].client.url} answered request {again[0]} twice with other "
                    "weights than the ones pushed, or broke it off: does somebody else push to it or pause it?"
                )
            asked_again |= stale.keys()
            for server in dict.fromkeys(stale.values()):
                self._push_if_other(server)
            waiting.extend(sorted(stale))
        return [answer for answer in answers if answer is not None]

    def push(self, stream: Iterable[tuple[str, Tensor]], folder: Path, version: int) -> Push:
        """Writes the weights to `folder` and has every server take them, those that were given up too.

        Raises:
            RolloutError: no room for them, a server refused them, or none is left.
        """
        with self._files:
            self.pushed = None
            self.pushed = write_push(folder, stream, version)
        self.wake(("weights",))
        for server in self.servers:
            server.failures, server.lost = 0, None
            self._kept_up(server, self._pull)
        self.live()
        return self.pushed

    def sleep(self) -> None:
        """An own server's weights and cache leave the GPU."""

        def fall_asleep(server: Server) -> None:
            self._reset_cache(server)
            self._ask(server, "/sleep?level=1", {})

        if not self._asleep:
            self._kept_up(self.servers[0], fall_asleep)
            self._asleep = set(ALL)

    def wake(self, tags: Sequence[str] = ALL) -> None:
        """They are there again."""
        if asleep := [tag for tag in tags if tag in self._asleep]:
            path = "/wake_up?" + "&".join(f"tags={tag}" for tag in asleep)
            self._kept_up(self.servers[0], lambda server: self._ask(server, path, {}))
            self._asleep -= set(asleep)

    def close(self) -> None:
        """Ends the own server; requests that wait are not made any more."""
        self._closed = True
        if self._restarts is not None:
            self._restarts.close()

    def _work(
        self, waiting: deque[int], bodies: Sequence[Body], answers: list[Answer | None]
    ) -> tuple[dict[Server, ServerGone], dict[int, Server]]:
        """(servers that failed, rows that were answered by other weights and by whom); the rest is in `answers`."""
        failed: dict[Server, ServerGone] = {}
        stale: dict[int, Server] = {}
        refused: list[BaseException] = []
        over, version = threading.Event(), self._version()

        def work(server: Server) -> None:
            while not (over.is_set() or self._closed or server in failed):
                try:
                    row = waiting.popleft()
                except IndexError:
                    return
                start = self._start()
                try:
                    answer = self._ask(server, GENERATE, bodies[row])
                except ServerGone as gone:
                    waiting.appendleft(row)
                    failed.setdefault(server, gone)
                    self._report(gone, start)
                except BaseException as error:
                    refused.append(error)
                    over.set()
                else:
                    answers[row] = answer if made_by(answer, version) else None
                    if answers[row] is None:
                        stale[row] = server

        live = self.live()
        turns = range(max(server.at_once for server in live))
        slots = [server for turn in turns for server in live if turn < server.at_once]
        threads = [  # daemons: an interrupt does not wait for replies, as the standard library's pool would
            threading.Thread(target=work, args=(server,), daemon=True, name="vllm-request")
            for server in slots[: len(waiting)]
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            over.set()  # an interrupt in this thread ends the others
        if self._closed:
            raise RolloutError("the engine was closed while it generated")
        if refused:
            raise refused[0]
        return failed, stale

    def _kept_up(self, server: Server, action: Callable[[Server], Any]) -> None:
        """Does `action` with a server that is not lost, again as often as it fails and comes back."""
        while server.lost is None:
            start = self._start()
            try:
                action(server)
                return
            except ServerGone as failure:
                gone = failure
            self._report(gone, start)
            self._wait_for(server, gone)

    def _report(self, gone: ServerGone, start: Start) -> None:
        """An own server that was there and did not answer is to be started again."""
        if self._socket is not None and gone.connected:
            take_away(self._socket, start)

    def _start(self) -> Start:
        return None if self._socket is None else start_of(self._socket)

    def _wait_for(self, server: Server, gone: ServerGone) -> None:
        """Until it is back, or given up."""
        logger.warning("the vLLM server %s %s", server.client.url, gone)
        if self._socket is not None:
            self._wait_for_restart(gone)
            return
        server.failures += 1
        if server.failures < STRIKES:
            time.sleep(PAUSE)
        else:
            server.lost = str(gone)

    def _wait_for_restart(self, gone: ServerGone) -> None:
        patience = (self.settings.max_restarts + 1) * self.settings.start_timeout
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            time.sleep(CHECK_EVERY)
            if self._closed:
                raise RolloutError("the engine was closed while it generated")
            if not self._socket.parent.is_dir():
                own = self._restarts.problem if self._restarts is not None else ""
                closed = f"{gone}, and the rank that owns it gave it up or closed it: its log is {self._log}"
                raise RolloutError(own or f"the vLLM server {closed}")
            with suppress(ServerGone):
                found = self._version_of(self.servers[0])
                if self.pushed is None or found == self._version():
                    return
        raise RolloutError(
            f"the vLLM server {gone}, and did not come back in {patience:g} s (start_timeout): its log is {self._log}"
        )

    def _push_again(self) -> None:
        """For an own server that was started again."""
        self._asleep = set()
        self._pull(self.servers[0])

    def _push_if_other(self, server: Server) -> None:
        """The pushed weights again, unless another rank has brought them, or brings them now."""
        deadline = time.monotonic() + self.settings.request_timeout

        def bring(server: Server) -> None:
            while (found := self._version_of(server)) == self._changing and time.monotonic() < deadline:
                time.sleep(PAUSE)
            if found != self._version():
                self._pull(server)

        self._kept_up(server, bring)

    def _pull(self, server: Server) -> None:
        with self._files:
            push, url = self.pushed, server.client.url
            if push is None:
                return
            self._ask(server, "/update_weight_version", {"new_version": self._changing}, SHORT)
            call = {"method": "align_pull", "args": [str(push.folder), push.files, push.digest]}
            for result in self._ask(server, "/collective_rpc", call)["results"]:
                if result["problem"] is not None:
                    state = "are undefined now" if result["undefined"] else "are the old ones"
                    raise RolloutError(
                        f"the vLLM server {url} did not take the weights of version {push.version}, its own {state}: "
                        f"{result['problem']}"
                    )
            self._reset_cache(server)
            self._ask(server, "/update_weight_version", {"new_version": self._version()}, SHORT)

    def _reset_cache(self, server: Server) -> None:
        """Keys and values of older weights must not be read; the server refuses while it still works."""
        deadline = time.monotonic() + SHORT
        while not self._ask(server, "/reset_prefix_cache", {}, SHORT)["success"]:
            if time.monotonic() > deadline:
                raise RolloutError(f"the vLLM server {server.client.url} is busy with somebody else's requests")
            time.sleep(0.05)

    def _ask(self, server: Server, path: str, body: Body | None = None, timeout: float | None = None) -> Any:
        return server.client.ask(path, body, timeout=timeout or self.settings.request_timeout)

    def _version_of(self, server: Server) -> str:
        return self._ask(server, "/weight_info", timeout=SHORT)["weight_version"]

    def _version(self) -> str:
        assert self.pushed is not None
        return f"{self.mark}-{self.pushed.version}"

    @property
    def _changing(self) -> str:
        return f"{self.mark}-changing"
