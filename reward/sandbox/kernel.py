"""What Linux offers and Python 3.11's `os` does not: namespaces, mounts, capabilities, Landlock, seccomp. By libc.

Numbers are those of the kernel's headers (linux/sched.h, mount.h, prctl.h, capability.h, landlock.h, seccomp.h,
filter.h, audit.h, unistd.h); system calls that glibc does not wrap have the same number on every architecture
(Landlock: 444 to 446) or are named per machine.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
NAMESPACES = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 1, 4, 36, 38, 24
PR_SET_SECCOMP, FILTER = 22, 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ = 1 | 1 << 2 | 1 << 3  # execute, read file, read directory
FILE_ACCESS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many kinds of access each version of Landlock knows; later ones: 16
LAST_CAPABILITY = 63
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}
CLONE, CLONE3 = (56, 220), 435  # first x86_64's number, then everybody else's
FORBIDDEN = {
    "sockets": ((41, 198),),  # socketpair stays
    "memory beside the limits": ((319, 279), (447, 447), (29, 194), (68, 186), (64, 190), (240, 180)),  # memfd, SysV
    "keys": ((248, 217), (249, 218), (250, 219)),  # those of the session that started the training are inherited
    "others' memory and files": ((101, 117), (310, 270), (311, 271), (438, 438), (304, 265)),
    "namespaces": ((272, 97), (308, 268), (165, 40)),
    "much of the kernel": ((425, 425), (321, 280), (298, 241), (323, 282)),  # io_uring, bpf, perf, userfaultfd
}


def libc() -> ctypes.CDLL:
    """The C library, with errno kept."""
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *words: object) -> int:
    found = getattr(libc(), name)(*words)
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return found


def _syscall(number: int, *words: object) -> int:
    return _call("syscall", ctypes.c_long(number), *words)


def unshare(flags: int) -> None:
    """Namespaces of one's own. Raises OSError."""
    _call("unshare", ctypes.c_int(flags))


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2). Raises OSError."""
    words = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    _call("mount", *words, ctypes.c_ulong(flags), os.fsencode(options))


def bind(source: str, target: str, read_only: bool = True) -> None:
    """`source` seen at `target` too, by default read-only, without set-user programs and devices. Raises OSError."""
    mount(source, target, None, MS_BIND | MS_REC)
    if read_only:
        kept = os.statvfs(target).f_flag & MS_NOEXEC  # in a user namespace it may not be taken off
        mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | kept)


def enter_root(folder: str) -> None:
    """Make `folder`, a mount, the root, and let go of the old one. Raises OSError."""
    os.chdir(folder)
    _syscall(PIVOT_ROOT[platform.machine()], b".", b".")
    _call("umount2", b".", ctypes.c_int(MNT_DETACH))
    os.chdir("/")


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises OSError."""
    _call("prctl", ctypes.c_int(option), ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)


def drop_capabilities() -> None:
    """None is left, and none comes back by starting a program. Raises OSError."""
    for number in range(LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError:  # no such capability, or no right to: then there is none to be had
            break
    header = struct.pack("Ii", 0x20080522, 0)
    _call("capset", header, bytes(24))


def landlock(readable: Iterable[str], writable: Iterable[str]) -> bool:
    """Only these folders can be read, and written; no TCP, no signals to whatever is outside (as the kernel's version
    allows). Needs no privilege but `PR_SET_NO_NEW_PRIVS`. Returns whether the kernel keeps all of that (Linux 6.12)."""
    try:
        version = _syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    except OSError:
        return False
    everything = (1 << FILE_ACCESS.get(version, 16)) - 1
    network, scope = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _syscall(
        LANDLOCK_CREATE, struct.pack("QQQ", everything, network, scope), ctypes.c_size_t(size), ctypes.c_uint(0)
    )
    for allowed, folders in ((READ, readable), (everything, writable)):
        for folder in folders:
            try:
                place = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            rule = struct.pack("=Qi", allowed if os.path.isdir(folder) else allowed & 7, place)
            _syscall(LANDLOCK_ADD, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint(0))
            os.close(place)
    _syscall(LANDLOCK_RESTRICT, ctypes.c_int(rules), ctypes.c_uint(0))
    os.close(rules)
    return version >= 6


def forbid_calls() -> bool:
    """No system call of `FORBIDDEN`, no namespace by clone, none by another architecture's numbers. Needs no privilege
    but `PR_SET_NO_NEW_PRIVS`. Returns whether the kernel and this file know how."""
    machine = platform.machine()
    if machine not in AUDIT or struct.calcsize("P") != 8:
        return False
    own = 0 if machine == "x86_64" else 1
    load, equal, above, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, JMP|JEQ, JGE, JSET, RET
    allow, kill, refuse, unknown = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    program = [(load, 0, 0, 4), (equal, 1, 0, AUDIT[machine]), (give, 0, 0, kill), (load, 0, 0, 0)]
    program += [(above, 0, 1, 1 << 30), (give, 0, 0, kill)]  # x32
    for numbers in (number for group in FORBIDDEN.values() for number in group):
        program += [(equal, 0, 1, numbers[own]), (give, 0, 0, refuse)]
    program += [(equal, 0, 1, CLONE3), (give, 0, 0, unknown)]  # its flags are in memory; libc then takes clone
    program += [(equal, 0, 3, CLONE[own]), (load, 0, 0, 16)]
    program += [(any_bit, 0, 1, NAMESPACES | NEWUSER), (give, 0, 0, refuse)]
    program.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    whole = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    try:
        _call("prctl", ctypes.c_int(PR_SET_SECCOMP), ctypes.c_ulong(FILTER), whole, *[ctypes.c_ulong(0)] * 2)
    except OSError:
        return False
    return True
