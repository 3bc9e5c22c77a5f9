"""A server that a trainer started does not outlive it, however the trainer ends.

A small process, forked off before vLLM is imported, holds the read end of a pipe whose only write end is the trainer's.
When that closes (the trainer ended, SIGKILL included) or the server itself has gone, it ends the whole process group,
first kindly, and removes the private folders, of which the one with the weights may lie in memory (/dev/shm). The
signal that Linux offers for it (PR_SET_PDEATHSIG) comes when the starting *thread* ends, and servers are started from
threads.

Kept open by mistake the pipe can be only by processes that the trainer forks without an exec; the server then lives as
long as the last of them.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

GRACE = 5.0  # seconds between SIGTERM and SIGKILL
CHECK_EVERY = 0.5  # seconds between two checks of the server


def end_with_parent(folders: Sequence[Path]) -> None:
    """Forks it; returns in the server alone. Standard input is the pipe; the server must lead its process group."""
    server = os.getpid()
    if os.getpgid(0) != server:
        raise RuntimeError("--owner-pipe is for servers that lead a process group of their own")
    if os.fork():
        return
    try:
        owner_ended = _wait_for_the_end(server)
        _end_group(server)
        if owner_ended:  # else it starts the server again and needs them
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
        os.killpg(server, signal.SIGKILL)  # this process with whatever is left
    finally:
        os._exit(0)


def _wait_for_the_end(server: int) -> bool:
    """True when the owner has gone, False when the server has."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pipe = sys.stdin.fileno()
    while os.getppid() == server:
        readable, _, _ = select.select([pipe], [], [], CHECK_EVERY)
        if readable and not os.read(pipe, 4096):
            return True
    return False


def _end_group(server: int) -> None:
    os.killpg(server, signal.SIGTERM)
    os.killpg(server, signal.SIGCONT)  # a stopped process does not hear the first
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and os.getppid() == server:
        time.sleep(0.05)
