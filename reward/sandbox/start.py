"""Starting sandboxes, several at once, and reading what they say: the training's side, which trusts nothing of it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from reward.protocol import RewardUnavailableError
from reward.workers import cores

logger = logging.getLogger(__name__)

Isolation = Literal["required", "best"]
PYTHON = os.path.realpath(sys.executable)
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop()); from reward.sandbox.keeper import serve; del sys.path[0]; serve()"
)
OUTPUT = 1 << 20  # bytes of a program's output that are compared
SPOKEN = 2 << 20  # bytes that a keeper may say
TOGETHER = 2  # times what one process may use, for all: the program is loaded in one, and tested in a copy of it
PATIENCE = 10  # times the seconds of CPU, in seconds of wall clock, until a test is given up
START = 60.0  # seconds beyond a reply's own until its keeper is given up
STARTS = 3  # of a keeper that breaks off
GLANCE = 0.2  # seconds until it is seen that a call is over
Made = tuple[list[tuple[str, str]], int]  # outcome and reason of each test that was made, and how many there are
ONCE = threading.Lock()


@dataclass(frozen=True, slots=True)
class Budget:
    """What a reply may use. Seconds of CPU decide wherever they can: what a reply gets does not depend on how busy the
    machine is; those of wall clock are for what waits and uses none.

    Attributes:
        seconds: of CPU that one test may take, and the loading of the code; where a reply starts processes, all of them
            have together twice as much as its tests and the loading may take.
        reply_seconds: of wall clock that a reply may take with all of its tests.
        total_seconds: of wall clock that a call may take; beyond them it is an error, never a score.
        memory_mib: of each process; all of them together have twice as much.
        file_mib: of a file; all files together may be four times that.
        processes: that the code may have at once, threads included.
        workers: replies at once; None: as many as there are cores for this rank.
        isolation: `required`: an error where the kernel gives no namespaces; `best`: then with what there is.
        without: `namespaces`, `landlock`, `seccomp`: walls that are left out, to see what they are good for.
    """

    seconds: int = 2
    reply_seconds: int = 60
    total_seconds: float = 3600.0
    memory_mib: int = 512
    file_mib: int = 16
    processes: int = 8
    workers: int | None = None
    isolation: Isolation = "required"
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A reply's code with its tests: what goes to the reply's side, and to the judge's."""

    program: dict[str, Any]
    tests: dict[str, Any]


def run_all(jobs: Sequence[Job], budget: Budget, name: str) -> list[Made]:
    """What came of the tests of each job, in order.

    Raises:
        RewardUnavailableError: there is no sandbox to be had, or the call took longer than it may; `name` is the
            reward's.
    """
    if not jobs:
        return []
    end, over = time.monotonic() + budget.total_seconds, threading.Event()

    def run(job: Job) -> Made:
        try:
            return _run(job, budget, end, over)
        except BaseException:
            over.set()
            raise

    try:
        with ThreadPoolExecutor(min(budget.workers or max(1, cores()), len(jobs))) as pool:
            try:
                return list(pool.map(run, jobs))
            finally:
                over.set()  # Ctrl-C does not wait for what is still tested
    except SandboxError as error:
        raise RewardUnavailableError(f"reward {name!r}: {error}") from error


class SandboxError(Exception):
    """No sandbox, or one that says nothing of use."""


def _run(job: Job, budget: Budget, end: float, over: threading.Event) -> Made:
    mib = 1 << 20
    limits = {"cpu": budget.seconds, "memory": budget.memory_mib * mib, "processes": budget.processes}
    limits |= {"file": budget.file_mib * mib, "folder": 4 * budget.file_mib * mib}
    asked = job.program | {"limits": limits, "output": OUTPUT}
    turns = 1 + max(1, len(job.tests["pairs"] or job.tests["asserts"]))  # of loading, and of each test
    together = {"memory": TOGETHER * limits["memory"], "cpu": TOGETHER * budget.seconds * turns}
    tests = job.tests | {"seconds": budget.reply_seconds, "patience": PATIENCE * budget.seconds, "together": together}
    for _ in range(STARTS):
        if over.is_set():
            return [], 0
        if time.monotonic() > end:
            raise SandboxError(
                f"the replies took longer than {budget.total_seconds:g} s (total_seconds): give more, or fewer replies"
            )
        without = [*budget.without]
        if budget.isolation == "best" and KEEPERS.apart is False and "namespaces" not in without:
            without.append("namespaces")
        said = _asked([asked | {"without": without}, tests], budget.reply_seconds + START, over)
        if "error" in said and ("namespaces" in without or not KEEPERS.apart):
            if budget.isolation == "required" or "namespaces" in without:
                raise SandboxError(_no_cage(said["error"]))
            KEEPERS.apart = False
        if "outcomes" in said:
            walls = tuple(said["walls"])
            if budget.isolation == "required" and "namespaces" not in walls:
                raise SandboxError(_no_cage("namespaces are left out"))
            KEEPERS.apart = KEEPERS.apart or "namespaces" in walls
            _tell_walls(walls)
            return _made(said["outcomes"])
    raise SandboxError(f"the sandbox broke off {STARTS} times; is there memory for it?")


def _made(told: Any) -> Made:
    """What a judge tells. Its cage ran tests, which come from strangers: they may have turned it."""
    try:
        outcomes, total = told
        return [(_text(outcome), _text(why)) for outcome, why in outcomes], int(total)
    except (TypeError, ValueError, OverflowError):
        return [("broken_test", "what the tests tell is no verdict")], 1


def _text(word: Any) -> str:
    return str(word).encode("utf-8", "replace").decode()  # half a surrogate pair can be written nowhere


class _Keepers:
    """The program that forks keepers; started when first asked, and again where it was ended. It ends with this one.

    Attributes:
        apart: whether the kernel gives namespaces; None until that is known. Where it gave them once, one that it
            does not give later is a failure that passes, and no reason to do without.
    """

    def __init__(self) -> None:
        self._lock, self._owner = threading.Lock(), os.getpid()
        self._control: socket.socket | None = None
        self.apart: bool | None = None

    def new(self) -> socket.socket:
        """A socket at whose other end a keeper is."""
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            if self._owner != os.getpid():  # a fork of the process that started it
                self._control, self._owner = None, os.getpid()
            try:
                socket.send_fds(self._control or self._start(), [b"."], [theirs.fileno()])
            except OSError:  # it was ended
                with contextlib.suppress(OSError):  # nobody is at the other end then
                    socket.send_fds(self._start(), [b"."], [theirs.fileno()])
        return ours

    def _start(self) -> socket.socket:
        self._control, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [PYTHON, "-P", "-S", "-s", "-c", PROGRAM, str(ROOT)],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},  # sets have one order; nothing else of ours
                cwd="/",
                start_new_session=True,
            )
        threading.Thread(target=process.wait, daemon=True).start()
        return self._control


KEEPERS = _Keepers()


def _asked(objects: list[dict[str, Any]], seconds: float, over: threading.Event) -> dict[str, Any]:
    """What a keeper says, nothing where it broke off or the call is over. One that is still busy then ends what it
    began."""
    words = b"".join(b"%d\n%s" % (len(data), data) for data in (json.dumps(one).encode() for one in objects))
    end, said = time.monotonic() + seconds, bytearray()
    with KEEPERS.new() as talk, contextlib.suppress(OSError):
        talk.settimeout(seconds)
        talk.sendall(words)
        talk.settimeout(GLANCE)
        while len(said) < SPOKEN and time.monotonic() < end and not over.is_set():
            with contextlib.suppress(TimeoutError):
                part = talk.recv(1 << 16)
                if not part:
                    break
                said += part
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _no_cage(problem: str) -> str:
    return (
        f"code can be run here only with less around it ({problem}): let user namespaces be made where this runs (a "
        "container needs a seccomp profile that allows unshare), or say isolation: best to run it all the same"
    )


@cache
def _told(walls: tuple[str, ...]) -> None:
    if "namespaces" in walls:
        logger.info("code of replies runs behind %s", ", ".join(walls))
        return
    logger.warning(
        "code of replies runs without namespaces, behind %s alone: it may reach what everybody on this machine may "
        "(isolation: best; docs/rewards.md says what that is)",
        ", ".join((*walls, "limits")),
    )


def _tell_walls(walls: tuple[str, ...]) -> None:
    """Say what is around the code, once a process."""
    with ONCE:
        _told(walls)
