"""A vLLM server that this process owns: started, ended, and ended by its parent's death.

It listens on a unix socket in a folder that only this user may enter: no other user can even connect, and no port is
taken. The key is made anew for every server and given to it by its environment.

The server leads a process group of its own. It ends with this process whatever happens (`rollouts.vllm.parent_death`).
What it says goes to a log file, which stays when it failed and is removed when it ended well.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from align.runtime.secrets import hide
from rollouts.errors import RolloutError
from rollouts.settings import memory_hint
from rollouts.vllm.auth import KEY_VARIABLE
from rollouts.vllm.client import Client, ServerGone

LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is 107
STOP_TIMEOUT = 10.0  # seconds between SIGTERM and SIGKILL
_TRAINERS_OWN = re.compile(  # what a launcher told the trainer's rank, and settings of vLLM in its process
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+|VLLM_ENABLE_V1_MULTIPROCESSING"
)
_ERROR = re.compile(r"(?:^|[\s\]])((?:[\w.]*(?:Error|Exception)): .*)$")


class ServerProcess:
    """One server, from `start` to `stop`; started anew, at the same place, after it died or hung.

    Args:
        start_timeout: seconds until it must answer.
        owned_folders: removed together with the server when this process dies.

    Attributes:
        arguments: of `python -m rollouts.vllm.serve`, but for where it listens.
        home: its private folder; it is gone when the server has been stopped.
        client: asks it.

    Raises:
        RolloutError: no place for a socket.
    """

    def __init__(self, *, start_timeout: float, owned_folders: Sequence[Path] = ()):
        self.start_timeout = start_timeout
        self.home = _home()
        self.owned_folders = [self.home, *owned_folders]
        handle, name = tempfile.mkstemp(prefix="align-vllm-", suffix=".log")  # mode 0600
        os.close(handle)
        self.log, self.socket = Path(name), self.home / "socket"
        self.arguments: list[str] = []
        self.client = Client(f"unix://{self.socket}", secrets.token_hex(32))
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        atexit.register(self.stop)

    @property
    def alive(self) -> bool:
        """Whether the process runs; it may hang all the same."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process and of its group."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Kills what is left of it, starts it, and waits until it answers.

        Raises:
            RolloutError: it ended, or gave no answer in time. The log stays.
        """
        self.kill()
        self.socket.unlink(missing_ok=True)
        if not self._stopped:
            self._spawn()
        self._wait_until_it_answers()

    def kill(self) -> None:
        """Ends the whole group at once."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._close_pipe()

    def stop(self) -> None:
        """Ends the whole group, kindly first; removes log and socket. Calling it again does nothing."""
        if self._stopped:
            return
        self._stopped = True
        atexit.unregister(self.stop)
        well = self.alive
        if well:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT)
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)
        if well:
            self.log.unlink(missing_ok=True)

    def _spawn(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not _TRAINERS_OWN.fullmatch(name)}
        here = str(Path(__file__).resolve().parents[2])
        paths = [here, *filter(None, [environment.get("PYTHONPATH")])]
        environment |= {KEY_VARIABLE: self.client.key, "PYTHONPATH": os.pathsep.join(paths)}
        owned = [word for folder in self.owned_folders for word in ("--owner-folder", str(folder))]
        command = [sys.executable, "-P", "-m", "rollouts.vllm.serve", "--uds", str(self.socket), "--owner-pipe"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *owned, *self.arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def _wait_until_it_answers(self) -> None:
        began = time.monotonic()
        while not self._stopped:
            if not self.alive:
                raise self._start_error(f"ended with code {self._process.returncode}")
            with contextlib.suppress(ServerGone):
                self.client.ask("/health", timeout=5.0)
                return
            if time.monotonic() - began > self.start_timeout:
                raise self._start_error(f"gave no answer in start_timeout = {self.start_timeout:g} s")
            time.sleep(0.1)
        self.kill()
        raise RolloutError("this server was stopped")

    def _start_error(self, what: str) -> RolloutError:
        self.kill()
        said = hide(last_error(self.log.read_text(encoding="utf-8", errors="replace")), [self.client.key])
        said = (said or "it said nothing") + memory_hint(said)
        return RolloutError(f"the vLLM server {what}: {said} (its log: {self.log})")

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _close_pipe(self) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()


def _home() -> Path:
    """A new folder that only this user may enter, with a path short enough for a socket in it."""
    for base in (None, "/tmp"):
        home = Path(tempfile.mkdtemp(prefix="align-vllm-", dir=base))  # mode 0700
        if len(os.fsencode(home / "socket")) <= LONGEST_SOCKET_PATH:
            return home
        home.rmdir()
    raise RolloutError(f"{home} is too long a path for a unix socket: set TMPDIR to a shorter one")


def last_error(log: str) -> str:
    """The last line of a log that names an error; else its last line. Pointers to lines above are passed over."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in reversed(lines):
        found = _ERROR.search(line)
        if found and "root cause" not in line:
            return found[1]
    return lines[-1] if lines else ""
