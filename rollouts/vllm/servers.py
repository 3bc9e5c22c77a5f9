"""The servers that hold one policy's weights: asked by a pool of threads, given weights, waited for when they fail.

Every row waits in one queue. A server has as many threads as it takes requests at once, each of which asks for one row
after another; the first failure of a server ends its threads, and what they asked for waits again. When all threads
have ended, the failed servers are back or given up, and what still waits is asked for. Every row is answered once; as
each has a seed of its own, it does not matter by whom or when.

A server given by URL is asked again after a pause, and left out when it fails twice between two pushes. One of our own
is started again by the rank that owns it (`rollouts.vllm.restart`). Between two pushes the servers are the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rollouts.errors import RolloutError
from rollouts.settings import VLLMSettings
from rollouts.vllm.client import SHORT, Client, ServerGone
from rollouts.vllm.delivery import Delivery, reset_cache
from rollouts.vllm.process import ServerProcess
from rollouts.vllm.requests import made_by
from rollouts.vllm.restart import CHECK_EVERY, Restarts, Start, start_of, take_away
from rollouts.vllm.weights import Push

logger = logging.getLogger(__name__)

GENERATE = "/inference/v1/generate"
STRIKES = 2  # failures after which a server given by URL is left out
PAUSE = 1.0  # seconds before a server given by URL is asked again
ALL = ("weights", "kv_cache")

Stream = Iterable[tuple[str, Tensor]]
Body = dict[str, Any]
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """A server as the owner found it, which every rank is told.

    Attributes:
        client: asks it.
        at_once: requests it works on together.
        room: tokens of its longest sequence.
        sees: the folder through which weights go; else they go over HTTP.
        lost: why it is given up; None while it lives.
    """

    client: Client
    at_once: int = 1
    room: int = 0
    sees: bool = True
    lost: str | None = None


@dataclass(eq=False)
class Server:
    """One server as this rank sees it.

    Attributes:
        place: where and what it is.
        failures: since the last push.
        lost: why it is given up; None while it lives.
        files: held while it reads the pushed files: they are not written then.
    """

    place: ServerPlace
    failures: int = 0
    lost: str | None = None
    files: threading.Lock = field(default_factory=threading.Lock)

    @property
    def client(self) -> Client:
        """Asks it."""
        return self.place.client


class Servers:
    """All servers of an engine.

    Args:
        places: of each.
        settings: of vLLM.
        mark: begins the name of every version of this engine's weights; nobody else's do.
        socket: of an own server; None for servers given by URL.
        log: of an own server.
        process: the own server, on the rank that owns it.

    Attributes:
        delivery: of the last weights; every rank is to set its `pushed`.
    """

    def __init__(
        self,
        places: Sequence[ServerPlace],
        settings: VLLMSettings,
        mark: str,
        *,
        socket: Path | None = None,
        log: Path | None = None,
        process: ServerProcess | None = None,
    ):
        self.servers, self.settings = [Server(place) for place in places], settings
        self.delivery = Delivery(mark, settings.request_timeout)
        self._socket, self._log = socket, log
        self._asleep: set[str] = set()
        self._closed = False
        self._restarts = Restarts(process, settings.max_restarts, self._push_again) if process is not None else None

    @property
    def places(self) -> tuple[ServerPlace, ...]:
        """What every rank is to know of them now."""
        return tuple(replace(server.place, lost=server.lost) for server in self.servers)

    def take(self, places: Sequence[ServerPlace]) -> None:
        """From now on these, in this order. Not while they are asked for replies."""
        known = {server.client.url: server for server in self.servers}
        self.servers = [known.get(place.client.url) or Server(place) for place in places]
        for server, place in zip(self.servers, places, strict=True):
            server.place, server.lost, server.failures = place, place.lost, 0

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

    def write(self, stream: Stream, folder: Path, version: int) -> Push:
        """Writes weights to `folder`; no server takes them before `push`. Raises RolloutError: no room for them."""
        with self._unread():
            self.delivery.write(stream, folder, version)
        return self._pushed

    def write_adapter(self, stream: Stream, folder: Path, version: int) -> Push:
        """The same with changes of the weights that were written last."""
        with self._unread():
            self.delivery.write_adapter(stream, folder, version)
        return self._pushed

    def push(self) -> None:
        """Has every server take what was written, all at the same time, those that were given up too.

        Raises:
            RolloutError: a server refused it, or none is left.
        """
        self.wake(("weights",))
        for server in self.servers:
            server.failures, server.lost = 0, None
        problems: list[BaseException] = []

        def bring(server: Server) -> None:
            try:
                self._kept_up(server, self._pull)
            except BaseException as problem:
                problems.append(problem)

        _at_once([partial(bring, server) for server in self.servers])
        if problems:
            raise problems[0]
        self.live()

    def sleep(self) -> None:
        """An own server's weights and cache leave the GPU."""

        def fall_asleep(server: Server) -> None:
            reset_cache(server.client)
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

    @property
    def _pushed(self) -> Push:
        assert self.delivery.pushed is not None
        return self.delivery.pushed

    @contextmanager
    def _unread(self) -> Iterator[None]:
        """No server reads the files."""
        with ExitStack() as held:
            for server in self.servers:
                held.enter_context(server.files)
            yield

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
        over, version = threading.Event(), self.delivery.version

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
        turns = range(max(server.place.at_once for server in live))
        slots = [server for turn in turns for server in live if turn < server.place.at_once]
        try:
            _at_once([partial(work, server) for server in slots[: len(waiting)]])
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
                if self.delivery.pushed is None or found == self.delivery.version:
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
            while (found := self._version_of(server)) == self.delivery.changing and time.monotonic() < deadline:
                time.sleep(PAUSE)
            if found != self.delivery.version:
                self._pull(server)

        self._kept_up(server, bring)

    def _pull(self, server: Server) -> None:
        with server.files:
            self.delivery.bring(server.client, sees=server.place.sees)

    def _ask(self, server: Server, path: str, body: Body | None = None, timeout: float | None = None) -> Any:
        return server.client.ask(path, body, timeout=timeout or self.settings.request_timeout)

    def _version_of(self, server: Server) -> str:
        return self._ask(server, "/weight_info", timeout=SHORT)["weight_version"]


def _at_once(works: Sequence[Callable[[], None]]) -> None:
    """Each in a thread; daemons: an interrupt does not wait for replies, as the standard library's pool would."""
    threads = [threading.Thread(target=work, daemon=True, name="vllm-request") for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
