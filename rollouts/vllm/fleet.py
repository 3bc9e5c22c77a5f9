"""Many requests to one or several servers at once: spread evenly, asked again when a server failed, each answered once.

Rounds: what is unanswered is dealt out over the servers that live, row by row in turn; the first failure of a server
ends its part of the round. After the round the failed are brought back or given up, and the next round asks what is
left. Answers already there are kept; as every request has a seed of its own, it does not matter who answers it or when.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rollouts.errors import RolloutError
from rollouts.vllm.http import Address, ServerGone

GENERATE = "/inference/v1/generate"

Body = dict[str, Any]
Answer = dict[str, Any]


@dataclass(eq=False)
class Server:
    """One server as the client sees it.

    Attributes:
        address: where.
        at_once: requests it works on together.
        lost: why it is given up; None while it lives.
    """

    address: Address
    at_once: int = 1
    lost: str | None = None


@dataclass
class _Part:
    """A server's share of a round."""

    server: Server
    rows: deque[int]
    failure: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Fleet:
    """Asks servers.

    Args:
        servers: all of them.
        timeout: seconds for one request.
        turn: says how often servers have been brought back; read when a round begins.
        failed: called at once with the server and the round's turn, from the thread that saw it fail: cuts what hangs.
        recover: called after the round with the server, its turn and the reason; brings it back or sets its `lost`.
        refresh: called with a server whose answers came from other weights; gives it the right ones again.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        timeout: float,
        turn: Callable[[], int],
        failed: Callable[[Server, int], None],
        recover: Callable[[Server, int, str], None],
        refresh: Callable[[Server], None],
    ):
        self.servers, self.timeout = list(servers), timeout
        self._turn, self._failed, self._recover, self._refresh = turn, failed, recover, refresh
        self.asked = 0  # requests made
        self._closed = False

    def live(self) -> list[Server]:
        """Those not given up.

        Raises:
            RolloutError: none is left.
        """
        found = [server for server in self.servers if server.lost is None]
        if not found:
            reasons = "; ".join(f"{server.address.url} {server.lost}" for server in self.servers)
            raise RolloutError(f"no vLLM server is left: {reasons}")
        return found

    def ask_all(self, bodies: Sequence[Body], acceptable: Callable[[Answer], bool]) -> list[Answer]:
        """The answers, in the order of `bodies`. One that is not `acceptable` is asked for once more.

        Raises:
            RolloutError: no server is left, a request is refused, or an answer is unacceptable again.
        """
        answers: list[Answer | None] = [None] * len(bodies)
        asked_again: set[int] = set()
        while pending := [row for row, answer in enumerate(answers) if answer is None]:
            turn = self._turn()
            dealt = deal(pending, self.live())
            parts = [_Part(server, deque(rows)) for server, rows in dealt]
            self._round(parts, bodies, answers, turn)
            refused: dict[int, Server] = {}
            for server, rows in dealt:
                for row in rows:
                    answer = answers[row]
                    if answer is not None and not acceptable(answer):
                        answers[row], refused[row] = None, server
            for part in parts:
                if part.failure is not None:
                    self._recover(part.server, turn, part.failure)
            if again := sorted(asked_again & refused.keys()):
                raise RolloutError(
                    f"the vLLM server {refused[again[0]].address.url} answered request {again[0]} twice with other "
                    "weights than the ones pushed, or broke it off: does somebody else push to it or pause it?"
                )
            asked_again |= refused.keys()
            for server in dict.fromkeys(refused.values()):
                if server.lost is None:
                    self._refresh(server)
        return [answer for answer in answers if answer is not None]

    def close(self) -> None:
        """Requests that wait are not made any more."""
        self._closed = True

    def _round(self, parts: list[_Part], bodies: Sequence[Body], answers: list[Answer | None], turn: int) -> None:
        fatal: list[BaseException] = []
        over = threading.Event()

        def work(part: _Part) -> None:
            while not (over.is_set() or self._closed):
                with part.lock:
                    if part.failure is not None or not part.rows:
                        return
                    row = part.rows.popleft()
                    self.asked += 1
                try:
                    answers[row] = part.server.address.ask(GENERATE, bodies[row], timeout=self.timeout)
                except ServerGone as gone:
                    with part.lock:
                        first, part.failure = part.failure is None, part.failure or str(gone)
                    if first:
                        self._failed(part.server, turn)
                except BaseException as error:
                    fatal.append(error)
                    over.set()

        threads = [
            threading.Thread(target=work, args=(part,), daemon=True, name="vllm-request")
            for part in parts
            for _ in range(min(len(part.rows), part.server.at_once))
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
        if fatal:
            raise fatal[0]


def deal(rows: Sequence[int], servers: Sequence[Server]) -> list[tuple[Server, list[int]]]:
    """Rows in turn: no server has two more than another. Servers that would get none are left out."""
    dealt = [(server, list(rows[first :: len(servers)])) for first, server in enumerate(servers)]
    return [(server, own) for server, own in dealt if own]
