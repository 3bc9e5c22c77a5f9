"""What the processes of a cage use together: memory now, seconds of CPU so far, read in /proc from outside of it.

Limits of the kernel's are a process's, and a cage has many. A cgroup would bound them all, but it is root's to give: in
sessions of users and in most containers none can be written. So the keeper looks at the processes itself, every
`GLANCE`, and ends them where they use too much. Between two glances a cage can go beyond the bound by as much as it
can fill in that time; each process's own limits hold at every moment.

Memory is counted anonymous, shared and swapped, of each process: pages that a fork has in common with its parent count
in both. CPU is that of all processes that were ever seen, and at least what those that are there have used and waited
for: one that lives shorter than a glance and is waited for by nobody is missed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

GLANCE = 0.05  # seconds
COUNTED = (b"RssAnon", b"RssShmem", b"VmSwap")  # lines of /proc/…/status, in KiB
TICKS = os.sysconf("SC_CLK_TCK")  # a second
LISTED = os.path.exists("/proc/thread-self/children")  # most kernels keep a list


class Together:
    """The processes below this one.

    Args:
        memory: bytes that they may hold together.
        cpu: seconds of CPU that they may use.
    """

    def __init__(self, memory: int, cpu: float):
        self.memory, self.cpu = memory, cpu
        self._used: dict[tuple[int, int], int] = {}  # by process and when it began, ticks of its own

    def over(self, without: int) -> tuple[str, str]:
        """The outcome, and why, where they use more than they may; else two empty texts.

        Args:
            without: a child that is left out, with all below it.
        """
        found = [child for child in children(os.getpid()) if child != without]
        held = waited = 0
        for process in found:
            found += children(process)  # and these are looked at in their turn
            if times := _times(process):
                began, own, of_children = times
                self._used[process, began] = own
                waited += own + of_children
            held += max(map(_held, _tasks(process)), default=0)
        if held > self.memory:
            return "memory", f"all processes together held more than {self.memory >> 20} MiB"
        if max(waited, sum(self._used.values())) > self.cpu * TICKS:
            return "timeout", f"all processes together used more than {self.cpu:g} s of CPU"
        return "", ""


def children(process: int) -> list[int]:
    """Its children, those that have ended and nobody has waited for too."""
    if LISTED:
        return [int(child) for task in _tasks(process) for child in _read(f"{task}/children").split()]
    every = map(int, filter(str.isdecimal, os.listdir("/proc")))
    return [one for one in every if (words := _stat(one)) and int(words[1]) == process]


def _tasks(process: int) -> Iterable[str]:
    """Folders of its threads: where the first one has ended it says nothing, and the others still hold the memory."""
    try:
        return [f"/proc/{process}/task/{task}" for task in os.listdir(f"/proc/{process}/task")]
    except OSError:
        return ()


def _held(task: str) -> int:
    """Bytes."""
    lines = (line.split() for line in _read(f"{task}/status").splitlines())
    return sum(int(words[1]) for words in lines if words and words[0].rstrip(b":") in COUNTED) << 10


def _times(process: int) -> tuple[int, int, int] | None:
    """When it began, its own ticks of CPU, and those of children that it has waited for; None where it is gone."""
    words = _stat(process)
    return (int(words[19]), int(words[11]) + int(words[12]), int(words[13]) + int(words[14])) if words else None


def _stat(process: int) -> list[bytes]:
    """What /proc/…/stat says behind the name, the state first; nothing where it is gone."""
    return _read(f"/proc/{process}/stat").rpartition(b")")[2].split()


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError:
        return b""
