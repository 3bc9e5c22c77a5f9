"""The sandbox under attack: what hostile replies try, and what came of it behind which walls.

    python examples/experiments/sandbox_attacks.py [--python INTERPRETER]

Each attack is a reply whose test passes only where it worked, or whose traces are looked for outside: a file that was
written, a signal that came, a connection, a process that is still there. They are made behind all walls, without
namespaces, and with the limits alone (another user too, where this is started by root). The table says `held`, with the
verdict, or WORKED. INTERPRETER is for a machine whose own Python lies where no other user may read.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_formats.records import Message
from reward.protocol import RewardError, Sample
from reward.sandbox import start
from reward.unit_tests import BROKEN, UnitTests

WALLS = {"namespaces": (), "Landlock": ("namespaces",), "limits": ("namespaces", "landlock", "seccomp")}
SECRET, MARK = "the secret of the user", "evil-reply"
FILE = Path(__file__).with_name("hostile_replies.md")
SEEN = ("written", "deleted", "signalled", "connected", "reached", "left")
WITHOUT_NAMESPACES = {"Many files, 1 GiB together"}
LIMITS_ALONE = {"Memory beside the limit (System V)", "Memory beside the limit (memfd)", "Sets up io_uring"}
LIMITS_ALONE |= {"Asks for the keys of the session", "Sends a packet (UDP)", "Makes a user namespace of its own"}
LIMITS_ALONE |= {"Writes a file outside", "Deletes a file outside", "Reads a file of the user's", "Starts a shell"}
LIMITS_ALONE |= {"Lists /home, /root, /etc", "Connects to a port (TCP)", "Listens at a port"}
KNOWN = dict(zip(WALLS, (set(), WITHOUT_NAMESPACES, WITHOUT_NAMESPACES | LIMITS_ALONE), strict=True))  # what may work
LIMITS = {"seconds": 1, "reply_seconds": 20, "memory_mib": 256}


@dataclass(frozen=True)
class Attack:
    """One reply.

    Attributes:
        name: what it tries.
        code: of the reply; `{…}` are filled in by `Place`.
        test: passes where it worked; "" where that is seen outside alone.
        seen: the method of `Place` that says whether it worked; "" where the test alone says it.
    """

    name: str
    code: str
    test: str
    seen: str


class Place:
    """What is attacked: a user's files, environment, process and ports."""

    def __init__(self, folder: Path):
        folder.chmod(0o755)
        self.folder, self.signals, self.packets = folder, 0, 0
        self.secret, self.open = folder / "secret.txt", folder / "open"
        self.secret.write_text(SECRET)
        self.open.mkdir()
        self.open.chmod(0o777)
        (self.open / "victim.txt").write_text("still here")
        self.server, self.packet = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for one in (self.server, self.packet):
            one.bind(("127.0.0.1", 0))
            one.setblocking(False)
        self.server.listen()

    def fill(self, code: str) -> str:
        ports = {"tcp": self.server.getsockname()[1], "udp": self.packet.getsockname()[1]}
        known = {"secret": self.secret, "open": self.open, "pid": os.getpid(), **ports}
        for name, value in known.items():
            code = code.replace("{" + name + "}", str(value))
        return code

    def written(self) -> bool:
        return (self.open / "written").exists()

    def deleted(self) -> bool:
        return not (self.open / "victim.txt").exists()

    def signalled(self) -> bool:
        return self.signals > 0

    def connected(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self.server.accept()[0].close()
            return True
        return False

    def reached(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            return bool(self.packet.recv(100))
        return False

    def left(self) -> bool:
        """A process of the reply's is still there."""
        return bool(marked())

    def close(self) -> None:
        self.server.close()
        self.packet.close()


def marked() -> list[int]:
    """Processes that gave themselves the mark as their name."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text().strip() == MARK:
                found.append(int(comm.parent.name))
    return found


def attacks() -> list[Attack]:
    """Those of `hostile_replies.md`."""
    found = re.findall(r"^## ([^\n]+)\n\nWorked: ([^\n]+)\n\n```python\n(.*?)^```$", FILE.read_text(), re.M | re.S)
    told = [(name, re.findall("`(.+?)`", worked), code) for name, worked, code in found]
    tests = [[word for word in words if word not in SEEN] for _, words, _ in told]
    return [
        Attack(name, code, next(iter(test), ""), next((word for word in words if word in SEEN), ""))
        for (name, words, code), test in zip(told, tests, strict=True)
    ]


def tried(attack: Attack, place: Place, walls: tuple[str, ...]) -> tuple[bool, str]:
    """Whether an attack worked, and the verdict on its reply.

    Raises:
        RewardError: no sandbox of this kind is to be had.
    """
    place.signals = 0
    budget = start.Budget(**LIMITS, isolation="best" if walls else "required", without=walls)
    tests = [f"assert {attack.test}" if attack.test else "assert f(0) == 'never'"]
    sample = Sample((Message("user", "q"),), place.fill(attack.code), columns={"tests": tests})
    (result,) = UnitTests(budget=budget).results([sample])
    outside = bool(attack.seen) and getattr(place, attack.seen)()
    return outside or result.reason in ("", BROKEN), result.reason or "passed"


@contextlib.contextmanager
def attacked() -> Iterator[Place]:
    """A place to attack, in this process."""
    os.environ["ALIGN_SECRET"] = SECRET
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        before = signal.signal(signal.SIGUSR1, lambda *_: setattr(place, "signals", place.signals + 1))
        try:
            yield place
        finally:
            signal.signal(signal.SIGUSR1, before)
            place.close()
            del os.environ["ALIGN_SECRET"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="the interpreter that runs the code (default: this one)")
    start.PYTHON = parser.parse_args().python or start.PYTHON
    print("| attack |", " | ".join(WALLS), "|\n|---|", "---|" * len(WALLS))
    for attack in attacks():
        print(f"| {attack.name} |", " | ".join(told(attack, walls) for walls in WALLS.values()), "|", flush=True)
    return 0


def told(attack: Attack, walls: tuple[str, ...]) -> str:
    """A cell of the table."""
    with attacked() as place:
        try:
            worked, verdict = tried(attack, place, walls)
        except RewardError as error:
            return f"not to be had: {error}"
    return f"**WORKED**, {verdict}" if worked else f"held: {verdict}"


if __name__ == "__main__":
    sys.exit(main())
