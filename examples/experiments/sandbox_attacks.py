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
import signal
import socket
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_formats.records import Message
from reward.protocol import RewardError, Sample
from reward.sandbox import start
from reward.unit_tests import UnitTests

WALLS = {"namespaces": (), "Landlock": ("namespaces",), "limits": ("namespaces", "landlock")}
SECRET, MARK = "hunter2-of-the-user", "evil-reply"
LIMITS = {"seconds": 1, "reply_seconds": 20, "memory_mib": 256}
NAMED = f"import ctypes; ctypes.CDLL(None).prctl(15, b'{MARK}', 0, 0, 0)"  # PR_SET_NAME


@dataclass(frozen=True)
class Attack:
    """One reply.

    Attributes:
        name: what it tries.
        code: of the reply; `{…}` are the fields of `Place`.
        test: passes where it worked; None where that is seen outside alone.
        outside: whether it worked, seen from outside.
    """

    name: str
    code: str
    test: str | None = None
    outside: Callable[[Place], bool] | None = None


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
        return textwrap.dedent(code)

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


def f(body: str) -> str:
    return "def f(x):\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ") + "\n"


READ = 'f(0) == "' + SECRET + '"'
FIND = "import gc, sys\n" + f("""
    found = [one for one in gc.get_objects() if isinstance(one, str | dict | list | tuple)]
    frame = sys._getframe()
    while frame:
        found += [frame.f_locals, frame.f_globals, *frame.f_code.co_consts]
        frame = frame.f_back
    text = repr(found) + open('/proc/self/cmdline').read()
    at = text.find('mark-of-' + 'the-test-')
    return text[at:at + 13 + 4]""")
FORGE = {
    "prints a success and exits with 0": 'print(\'[[["passed", ""]], 1]\'); import sys; sys.exit(0)',
    "os._exit(0) while loading": "import os; os._exit(0)",
    "os._exit(0) in the test": f("import os; os._exit(0)"),
    "raises SystemExit, KeyboardInterrupt": f("raise (SystemExit(0) if x % 2 else KeyboardInterrupt())"),
    "value that is equal to everything": "class E(int):\n    __eq__ = lambda a, b: True\n    __hash__ = int.__hash__\n"
    "class O:\n    __eq__ = lambda a, b: True\n" + f("return E(7) if x % 2 else O()"),
    "patches builtins, unittest, assert": "import builtins, unittest\nclass A(Exception): pass\n"
    "builtins.AssertionError = A; builtins.abs = builtins.len = lambda *a: 4\n"
    "unittest.TestCase.assertEqual = lambda *a: None\nf = lambda x: 7",
    "patches the sandbox's own side": "import sys\nfor name, module in list(sys.modules.items()):\n"
    "    if name.startswith('reward'):\n        module.encoded = lambda *a: 4; module._said = lambda *a: 'passed'\n"
    "raise ValueError",
    "writes a verdict to every descriptor": "import os\nfor number in range(3, 64):\n    try:\n"
    '        os.write(number, b\'[[["passed", ""]], 1]\\n{"ready": true}\\n{"begun": true}\\n{"value": 7}\\n\')\n'
    "    except OSError: pass\nos._exit(0)",
    "atexit, then a crash": "import atexit, os\natexit.register(lambda: os._exit(0))\n" + f("os.abort()"),
}
ATTACKS = (
    Attack("fork bomb", NAMED + "\nimport os\nwhile True: os.fork()", None, Place.left),
    Attack(
        "more processes than allowed",
        "import os, time\n"
        + f("""
        for number in range(200):
            try:
                if os.fork() == 0: time.sleep(3); os._exit(0)
            except OSError: return number
        return number"""),
        "f(0) > 20",
    ),
    Attack(
        "endless output on stdout and stderr",
        "import sys\n"
        + f("""
        while True: print("x" * 9999); print("x" * 9999, file=sys.stderr)"""),
        "f(0) or True",
    ),
    Attack("endless loop", f("while True: pass"), "f(0) or True"),
    Attack(
        "loop that catches the limit's signal and sets it higher",
        "import resource, signal\n"
        + f("""
        signal.signal(signal.SIGXCPU, lambda *a: None)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        while True: pass"""),
        "f(0) or True",
    ),
    Attack("sleep", "import time\n" + f("time.sleep(100)"), "f(0) or True"),
    Attack("memory bomb", f("return len(bytearray(1 << 30))"), "f(0) > 1 << 29"),
    Attack(
        "file of 1 GiB",
        f("""
        with open('big', 'wb') as file:
            for _ in range(1024): file.write(bytes(1 << 20))
        return 1"""),
        "f(0) == 1",
    ),
    Attack(
        "many files, 1 GiB together",
        f("""
        for number in range(100):
            with open(str(number), 'wb') as file: file.write(bytes(10 << 20))
        return 1"""),
        "f(0) == 1",
    ),
    Attack("writes a file outside", "open('{open}/written', 'w').write('x')", None, Place.written),
    Attack("deletes a file outside", "import os; os.remove('{open}/victim.txt')", None, Place.deleted),
    Attack("reads a file of the user's", f("return open('{secret}').read()"), READ),
    Attack(
        "lists /home, /root, /etc",
        "import os\n" + f("return len(os.listdir('/home') + os.listdir('/etc'))"),
        "f(0) > 0",
    ),
    Attack("reads the environment", "import os\n" + f("return os.environ['ALIGN_SECRET']"), READ),
    Attack(
        "reads the parent's environment",
        f("""
        text = open('/proc/{pid}/environ').read()
        return next(one for one in text.split(chr(0)) if 'ALIGN_SECRET' in one).split('=')[1]"""),
        READ,
    ),
    Attack("signals the training's process", "import os; os.kill({pid}, 10)", None, Place.signalled),
    Attack(
        "attaches to the training's process (ptrace)",
        "import ctypes\n"
        + f("""
        return ctypes.CDLL(None).ptrace(0x4206, {pid}, 0, 0)"""),
        "f(0) == 0",
    ),
    Attack(
        "connects to a port (TCP)",
        "import socket; socket.create_connection(('127.0.0.1', {tcp}), 2)",
        None,
        Place.connected,
    ),
    Attack(
        "sends a packet (UDP)",
        "import socket\nsocket.socket(2, 2).sendto(b'x', ('127.0.0.1', {udp}))",
        None,
        Place.reached,
    ),
    Attack(
        "listens at a port",
        "import socket\n"
        + f("""
        server = socket.socket(); server.bind(('127.0.0.1', 0)); server.listen()
        socket.create_connection(server.getsockname(), 2); return 1"""),
        "f(0) == 1",
    ),
    Attack(
        "leaves a daemon behind (double fork, setsid)",
        NAMED
        + "\nimport os, time\n"
        + f("""
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0: time.sleep(60)
            os._exit(0)
        return 7"""),
        "f(0) == 4",
        Place.left,
    ),
    Attack(
        "starts a shell",
        "import subprocess\n"
        + f("""
        return subprocess.run(['/bin/sh', '-c', 'exit 3']).returncode"""),
        "f(0) == 3",
    ),
    Attack(
        "becomes root, makes namespaces of its own",
        "import ctypes, os\n"
        + f("""
        return ctypes.CDLL(None).unshare(0x10000000) == 0 or os.setuid(0) or True"""),
        "f(0)",
    ),
    Attack("looks for the tests (gc, frames, /proc/self)", FIND, 'f(0) == "mark-of-the-test-7319"'),
    *(Attack(name, code, "f(2) == 4 and f(3) == 9") for name, code in FORGE.items()),
)


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
    outside = attack.outside is not None and attack.outside(place)
    return outside or not result.reason, result.reason or "passed"


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
    for attack in ATTACKS:
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
