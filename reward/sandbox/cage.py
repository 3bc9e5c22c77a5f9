"""A process in a cage: `confined` forks one that runs a piece of work behind walls and limits.

Three processes of it: the outer one holds the new namespaces' door, the inner one is their first process (pid 1; the
kernel ends everything in there when it ends), and its child does the work. Each dies with the one before it. Where the
kernel gives no namespaces the three are there too, with less around them; what is there is told before the work begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

from reward.sandbox import kernel
from reward.sandbox.root import DEVICES, put_root, readable

NOBODY = 65534
USERS, MANY = 1_800_000_000, 1_000_000  # numbers that are nobody's: a cage of root's has one of its own
HOLDERS = 4  # processes of a cage beside those that the code is run in
UNSHARED = b"unshared\n"
LINUX = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the work may use.

    Attributes:
        cpu: seconds of CPU of each process, counted anew in each.
        memory: bytes of address space of each process.
        file: bytes of a file.
        folder: bytes of all files together, where the folder is in memory.
        processes: how many there may be, threads included.
    """

    cpu: int
    memory: int
    file: int
    folder: int
    processes: int
    open_files: int = 64


@dataclass(frozen=True, slots=True)
class Walls:
    """Which walls are put up. Without namespaces that are wanted nothing is done; the others are where they are."""

    namespaces: bool = True
    landlock: bool = True
    seccomp: bool = True


class NoCageError(Exception):
    """The kernel does not give what was required."""


def confined(
    work: Callable[[], None], limits: Limits, keep: Iterable[int], wanted: Walls, number: int
) -> tuple[int, int]:
    """Fork a process that does `work` in a cage.

    Args:
        keep: descriptors that it has; all others are closed, and the standard ones lead nowhere.
        wanted: which walls.
        number: of the cage, below `MANY`; those that are there at once differ.

    Returns:
        Its id, and a descriptor on which it tells one line of JSON: `{"walls": […]}` or `{"error": …}`.
    """
    (told, tell), (wait, go) = os.pipe(), os.pipe()
    outer = os.fork()
    if outer:
        os.close(tell)
        os.close(wait)
        if wanted.namespaces and os.geteuid() == 0:
            with contextlib.suppress(OSError):
                _give_numbers(outer, told, number)
        os.close(go)
        return outer, told
    try:
        os.close(go)
        _outer(work, limits, sorted({*keep, tell, wait}), wanted, number, tell, wait)
    except BaseException as error:
        _tell(tell, {"error": str(error) if isinstance(error, NoCageError) else f"{type(error).__name__}: {error}"})
    os._exit(1)


def _give_numbers(outer: int, told: int, number: int) -> None:
    """In a user namespace that root made, root and the number of the cage's user mean themselves."""
    line = b""
    while not line.endswith(b"\n") and (letter := os.read(told, 1)):
        line += letter
    if line != UNSHARED:
        return
    _write(f"/proc/{outer}/gid_map", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
    for user in (USERS + number, NOBODY):  # a container may not have the first
        with contextlib.suppress(OSError):
            _write(f"/proc/{outer}/uid_map", f"0 0 1\n{user} {user} 1\n")
            return


def _outer(
    work: Callable[[], None], limits: Limits, keep: list[int], wanted: Walls, number: int, tell: int, wait: int
) -> NoReturn:
    os.setsid()
    _die_with_parent()
    _dumpable(True)
    _only(keep)
    apart = wanted.namespaces
    if apart:
        _namespaces(tell, wait)
    os.close(wait)
    inner = os.fork()
    if inner == 0:
        _die_with_parent()
        threads = _threads(apart)
        with contextlib.suppress(OSError):
            _write("/proc/self/oom_score_adj", "1000")  # where memory runs out it is not the training that ends
        folder = put_root(limits.folder) if apart else tempfile.mkdtemp(prefix="align-reply-")
        walls = ["namespaces"] * apart + _smaller(folder, number, wanted)
        _limit(limits, threads)
        worker = os.fork()
        if worker == 0:
            _die_with_parent()
            _tell(tell, {"walls": walls, "folder": None if apart else folder})
            os.close(tell)
            os.environ.clear()
            os.environ.update(HOME=folder, TMPDIR=folder, LANG="C.UTF-8")
            os.chdir(folder)
            work()
            os._exit(0)
        os.close(tell)
        _wait(worker)
    _dumpable(False)
    os.close(tell)
    _wait(inner)


def _wait(child: int) -> NoReturn:
    """End as `child` does; whatever else falls to this process is forgotten meanwhile."""
    for file in range(3, 256):
        with contextlib.suppress(OSError):
            os.close(file)
    while True:
        ended, status = os.wait()
        if ended == child:
            os._exit(min(255, os.waitstatus_to_exitcode(status) & 0xFF))


def _die_with_parent() -> None:
    if LINUX:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)


def _dumpable(whether: bool) -> None:
    """Where it is not, nobody but root may look into this process, and its files in /proc are root's to write."""
    if LINUX:
        kernel.prctl(kernel.PR_SET_DUMPABLE, int(whether))


def _only(keep: list[int]) -> None:
    """Close every descriptor but these and the standard ones, which lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    edges = [2, *(file for file in keep if file > 2), resource.getrlimit(resource.RLIMIT_NOFILE)[0]]
    for low, high in pairwise(edges):
        os.closerange(low + 1, high)


def _namespaces(tell: int, wait: int) -> None:
    """Enter namespaces, below a user namespace where there can be one: what rights the code finds, it has in there.

    Raises:
        NoCageError: the kernel gives none.
    """
    user, group, problem = os.geteuid(), os.getegid(), f"there are no namespaces on {sys.platform}"
    for flags in (kernel.NAMESPACES | kernel.NEWUSER, kernel.NAMESPACES) if LINUX else ():
        try:
            kernel.unshare(flags)
        except OSError as error:
            problem = str(error)
            continue
        below = bool(flags & kernel.NEWUSER)
        if user == 0:
            os.write(tell, UNSHARED if below else b"\n")
            os.read(wait, 1)
        elif below:
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{user} {user} 1")
            _write("/proc/self/gid_map", f"{group} {group} 1")
        with contextlib.suppress(OSError):
            if below:
                _write("/proc/sys/user/max_user_namespaces", "0")  # none inside this one
        return
    if user == 0:
        os.write(tell, b"\n")
    raise NoCageError(problem)


def _write(file: str, text: str) -> None:
    with open(file, "w") as opened:
        opened.write(text)


def _smaller(folder: str, number: int, wanted: Walls) -> list[str]:
    """Another user where this one is root, nothing of privileges, Landlock, seccomp; returns what there is of it."""
    walls = []
    if os.geteuid() == 0:
        for user in (USERS + number, NOBODY):  # a container may not have the first
            try:
                if not wanted.namespaces:
                    os.chown(folder, user, NOBODY)
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(user, user, user)
                walls.append("own user")
                break
            except OSError:
                continue
        try:
            with open(os.__file__, "rb"):
                pass
        except OSError as error:
            raise NoCageError(f"no other user than root may read {os.__file__}, which the code needs") from error
    if LINUX:
        _die_with_parent()  # a change of the user takes that off
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.drop_capabilities()
        _dumpable(False)
        with contextlib.suppress(OSError):
            if wanted.landlock and kernel.landlock([*readable(), *DEVICES[1:]], [folder, DEVICES[0]]):
                walls.append("landlock")
        if wanted.seccomp and kernel.forbid_calls():
            walls.append("seccomp")
    return walls


def _limit(limits: Limits, threads: int) -> None:
    for name, value in (
        ("CPU", limits.cpu),
        ("AS", limits.memory),
        ("FSIZE", limits.file),
        ("NOFILE", limits.open_files),
        ("NPROC", threads + limits.processes + HOLDERS),
        ("CORE", 0),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
    ):
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            _, hard = resource.getrlimit(kind)
            bound = value + 1 if name == "CPU" else value  # SIGXCPU, and a second later SIGKILL
            bound = bound if hard < 0 else min(bound, hard)
            resource.setrlimit(kind, (min(value, bound), bound))


def _threads(apart: bool) -> int:
    """How many threads the limit of processes counts beside the cage's own: all of the user's, unless it has a number
    of its own, or a user namespace counts for itself (Linux 5.14)."""
    user = os.geteuid()
    kernel_version = tuple(int(part) for part in os.uname().release.split(".")[:2] if part.isdecimal())
    if user == 0 or (apart and kernel_version >= (5, 14)):
        return 0
    count = 0
    for process in filter(str.isdecimal, os.listdir("/proc") if LINUX else ()):
        with contextlib.suppress(OSError, KeyError, ValueError), open(f"/proc/{process}/status") as opened:
            told = dict(line.split(":", 1) for line in opened)
            if int(told["Uid"].split()[0]) == user:
                count += int(told["Threads"])
    return count


def _tell(file: int, what: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(file, json.dumps(what).encode() + b"\n")
