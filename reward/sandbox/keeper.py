"""The keeper of a reply: it holds the two cages and has the last word. It runs nothing of the reply's or the tests'.

`reward.sandbox.start` starts this program once, and hands it a socket for each reply, for which it forks a keeper
(`serve`); it never reads what is said there, so nothing of one reply is to be found in the processes of the next.

The keeper reads two objects of JSON, the reply's program and, once that process is there without them, the tests; and
writes one line, what came of them. When the socket ends, nobody asks any more, and it ends what it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from typing import Any

from reward.sandbox import kernel, reply
from reward.sandbox.cage import LINUX, MANY, Limits, Walls, confined
from reward.sandbox.judge import judge
from reward.sandbox.together import GLANCE, Together, children

LONGEST = 1 << 20  # bytes of a verdict
GONE = 10.0  # seconds until everything that was killed is gone


def serve() -> None:
    """Fork a keeper for every socket that comes over standard input, until that ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    control = socket.socket(fileno=0)
    while True:
        said, given, _, _ = socket.recv_fds(control, 1, 1)
        if not said:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(given[0], 0)
            os.close(given[0])
            try:
                keep()
            finally:
                os._exit(0)
        os.close(given[0])


def keep() -> None:
    """Judge the reply that is told on standard input, which is a socket."""
    if LINUX:
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)  # what a daemon leaves behind comes to this process
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # no process of the same user may look into it
    program = _object()
    ours, theirs = socket.socketpair()
    limits, number = Limits(**program["limits"]), 2 * os.getpid() % MANY
    wanted = Walls(**dict.fromkeys(program["without"], False))
    started: list[int] = []
    folders: list[str] = []
    try:
        child, told = confined(
            lambda: reply.answer(theirs.fileno(), program), limits, [theirs.fileno()], wanted, number
        )
        started.append(child)
        theirs.close()
        found = _walls(told, folders)
        if "error" not in found:
            tests, verdict, tell = _object(), *os.pipe()
            own = Limits(int(tests["seconds"]), limits.memory, limits.file, limits.folder, 0)
            child, told = confined(
                lambda: _tell(tell, judge(ours.fileno(), tests)), own, [ours.fileno(), tell], wanted, number + 1
            )
            started.append(child)
            os.close(tell)
            ours.close()
            found |= _walls(told, folders)
            found["outcomes"] = _outcomes(verdict, tests["seconds"], Together(**tests["together"]), child)
    finally:
        _end_all(started)
        for folder in folders:
            _remove(folder)
    os.write(0, json.dumps(found).encode() + b"\n")


def _tell(file: int, found: Any) -> None:
    data = json.dumps(found).encode()
    while data:
        data = data[os.write(file, data) :]


def _outcomes(verdict: int, seconds: float, together: Together, judging: int) -> Any:
    """What the process `judging` tells within the reply's seconds of wall clock, as long as all other processes use no
    more `together` than they may."""
    parts, end = [], time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([verdict, 0], [], [], max(0.0, min(GLANCE, end - time.monotonic())))
        outcome, why = together.over(without=judging) if LINUX else ("", "")
        if not outcome and verdict not in ready and time.monotonic() >= end:
            outcome, why = "timeout", "the reply's time is over"
        if outcome:
            return [[outcome, why]], 1
        if not ready:
            continue
        if verdict not in ready:
            raise SystemExit(1)  # nobody asks any more
        part = os.read(verdict, 1 << 16)
        if not part or sum(map(len, parts)) > LONGEST:
            break
        parts.append(part)
    try:
        return json.loads(b"".join(parts))
    except (ValueError, RecursionError):
        return [["crash", "the judge broke off"]], 1


def _walls(told: int, folders: list[str]) -> dict[str, Any]:
    """What a cage says before its work begins."""
    with open(told, "rb") as opened:
        line = opened.readline(1 << 16)
    walls = json.loads(line) if line else {"error": "the cage broke off"}
    folder = walls.pop("folder", None)
    if folder:
        folders.append(folder)
    return walls


def _end_all(started: list[int]) -> None:
    """Kill every process that is this one's child or becomes it by the death of its parents."""
    end = time.monotonic() + GONE
    while time.monotonic() < end:
        for child in children(os.getpid()) if LINUX else (-group for group in started):
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _remove(folder: str) -> None:
    """Whatever was left there: deeper than Python's stack, or without the right to look into it."""
    if os.geteuid():
        os.spawnlp(os.P_WAIT, "chmod", "chmod", "-R", "u+rwx", "--", folder)
    os.spawnlp(os.P_WAIT, "rm", "rm", "-rf", "--", folder)


def _object() -> dict[str, Any]:
    """A length and so many bytes of JSON from standard input, and no byte of what follows: that is not to be found in a
    process that is forked now."""
    length = bytearray()
    while not length.endswith(b"\n"):
        length += _some(1)
    data = bytearray()
    while len(data) < int(length):
        data += _some(int(length) - len(data))
    return json.loads(data)


def _some(most: int) -> bytes:
    part = os.read(0, most)
    if not part:
        raise SystemExit(1)
    return part
