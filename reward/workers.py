"""Rules judged in processes of their own, so that a hostile reply costs bounded time and nothing else.

A pattern or a formula can keep a library busy for ever, in C code that no exception and no thread can end. Each reply
therefore has seconds of CPU in a worker (`reward.rule_worker`), and a batch has a budget: once `BUDGET` seconds were
lost to replies that ran out of them, every later reply of the batch has `HURRY` seconds. Both count CPU time and go by
the order of the replies, so scores do not depend on how many workers there are or how busy the machine is.

Workers start when first asked, serve every rule of the process, and end with it. One that is killed is started again
and asked once more: that is never a verdict on a reply. They are plain programs, started by path: neither the user's
main script nor a file of his working folder is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from reward.protocol import RewardError

logger = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("rule_worker.py")
BUDGET = 10.0  # seconds of CPU that a batch's late replies may cost before the others have to hurry
HURRY = 0.1
MOST = 4  # workers of one kind
SHARE = 8  # replies that are worth a further worker
STARTS = 3  # of a worker for one reply
PATIENCE = 60.0  # seconds of wall clock for a start, or beyond a reply's own ten times over

Answer = dict[str, Any]


class WorkerLostError(Exception):
    """A worker that ended, or says nothing."""


class Workers:
    """The workers of one kind.

    Args:
        kind: `math` or `regex`, see `reward.rule_worker`.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def judge(self, requests: Sequence[dict[str, Any]], seconds: float, name: str) -> list[Any]:
        """What the worker says of each request (see `rule_worker`); `late` for one that ran out of its `seconds`,
        `broken` for one that broke it, both counted in the log.

        Raises:
            RewardError: no worker can be had; `name` is the rule's.
        """
        if not requests:
            return []
        with self._lock:
            if self._owner != os.getpid():  # a fork of the process that started them
                self._workers, self._owner = [], os.getpid()
            count = max(1, min(MOST, cores(), len(requests) // SHARE))
            self._workers += [_Worker(self.kind) for _ in range(count - len(self._workers))]
            batch = _Batch(requests, seconds)
            with ThreadPoolExecutor(count) as pool:
                try:
                    for done in [pool.submit(batch.work, worker) for worker in self._workers[:count]]:
                        done.result()
                except WorkerLostError as error:
                    raise RewardError(f"reward {name!r}: {error}") from error
                finally:
                    batch.stop()  # Ctrl-C waits for the replies in work alone
        found = batch.verdicts()
        if wrong := sum(said in ("late", "broken") for said in found):
            logger.warning(
                "reward %r: %d of %d replies count as wrong, since judging them takes more than %g s of CPU (%g s once "
                "%g s of the batch were lost to such replies) or breaks the judge",
                *(name, wrong, len(found), seconds, batch.hurry, BUDGET),
            )
        return found

    def close(self) -> None:
        """End the workers."""
        if self._owner == os.getpid():
            for worker in self._workers:
                worker.close()
        self._workers = []


@cache
def workers(kind: str) -> Workers:
    """Those of this process."""
    found = Workers(kind)
    atexit.register(found.close)
    return found


class _Batch:
    """The requests of one call, dealt out in order."""

    def __init__(self, requests: Sequence[dict[str, Any]], seconds: float):
        self.requests, self.seconds, self.hurry = requests, seconds, min(seconds, HURRY)
        self.allowed = max(1, int(BUDGET / seconds))  # late replies before the others hurry
        self.answers: list[Answer | None] = [None] * len(requests)
        self._late: list[int] = []
        self._next, self._lock = 0, threading.Lock()

    def work(self, worker: _Worker) -> None:
        """Ask `worker` until nothing is left."""
        while True:
            with self._lock:
                row, self._next = self._next, self._next + 1
                if row >= len(self.requests):
                    return
                late = sum(before < row for before in self._late)
            try:
                answer = worker.ask(self.requests[row], self.seconds if late < self.allowed else self.hurry)
            except WorkerLostError:
                self.stop()
                raise
            self.answers[row] = answer
            if answer["said"] == "late":
                self._late.append(row)

    def stop(self) -> None:
        """Nothing further is asked."""
        self._next = len(self.requests)

    def verdicts(self) -> list[Any]:
        """What was said, with the budget kept in the order of the replies, whoever was asked first."""
        found, late = [], 0
        for answer in self.answers:
            said = answer["said"]
            if late >= self.allowed and answer.get("cpu", 0.0) > self.hurry:
                said = "late"
            late += said == "late"
            found.append(said)
        return found


class _Worker:
    """One process; started when first asked."""

    def __init__(self, kind: str):
        self.kind, self.process = kind, None

    def ask(self, request: dict[str, Any], seconds: float) -> Answer:
        """The answer to a request, by a new process where this one was ended.

        Raises:
            WorkerLostError: it ended `STARTS` times, or does not start.
        """
        line = json.dumps({**request, "seconds": seconds}).encode() + b"\n"
        for start in range(1, STARTS + 1):
            if self.process is None:
                self._start()
            try:
                _send(self.process.stdin.fileno(), line)
                return self._read(10 * seconds + PATIENCE)
            except (WorkerLostError, OSError) as error:
                self.close()
                if start == STARTS:
                    raise WorkerLostError(
                        f"the process that judges replies broke off {start} times ({error})"
                    ) from error
        raise AssertionError("unreachable: the last start returns or raises")

    def _start(self) -> None:
        alone = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}  # sympy's order of terms hangs on hashes
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM), self.kind],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **alone},
            start_new_session=True,  # Ctrl-C is for the training, which may finish its step
        )
        self._rest = b""
        try:
            told = self._read(PATIENCE)
        except WorkerLostError as error:
            self.close()
            raise WorkerLostError(f"the process that judges replies does not start ({error})") from error
        if not told.get("ready"):
            self.close()
            raise WorkerLostError(
                f"the process that judges replies does not work ({told.get('error', 'wrong answer')})"
            )

    def _read(self, seconds: float) -> Answer:
        end, pipe = time.monotonic() + seconds, self.process.stdout.fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise WorkerLostError(f"no answer in {seconds:g} s")
            part = os.read(pipe, 1 << 16)
            if not part:
                raise WorkerLostError("it ended")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """End the process; a fork of it that is still busy ends with its seconds of CPU."""
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.stdout.close()
            process.kill()
            process.wait()


def _send(pipe: int, line: bytes) -> None:
    while line:
        line = line[os.write(pipe, line) :]


def cores() -> int:
    """Those that this rank may count as its own."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return here // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
