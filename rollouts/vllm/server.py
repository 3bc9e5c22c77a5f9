"""A vLLM server that this process owns: started, watched, started again, ended.

It listens on a unix socket in a folder that only this user may enter, where the platform has such sockets (and the
path is short enough for them): no other user can even connect, and no port is taken. Otherwise it takes a free port of
127.0.0.1, to which every user of the machine can connect; the key keeps them out. The key is made anew for every server
and given to it by its environment.

The server leads a process group of its own. It ends with this process whatever happens (`rollouts.vllm.reaper`). What
it says goes to a log file, which stays when it failed and is removed when it ended well.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from align.runtime.secrets import hide
from rollouts.errors import RolloutError
from rollouts.settings import memory_hint
from rollouts.vllm.guard import KEY_VARIABLE
from rollouts.vllm.http import Address, ServerGone

logger = logging.getLogger(__name__)

LONGEST_SOCKET_PATH = 100  # bytes; the kernel's limit is 107
STOP_TIMEOUT = 10.0  # seconds between SIGTERM and SIGKILL
PORTS_TRIED = 5
_TRAINERS_OWN = re.compile(  # what a launcher told the trainer's rank, and settings of vLLM in its process
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+|VLLM_ENABLE_V1_MULTIPROCESSING"
)
_ERROR = re.compile(r"(?:^|[\s\]])((?:[\w.]*(?:Error|Exception)): .*)$")


def free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class VLLMServer:
    """One server process, from `start` to `stop`; `restart` after it died or hung.

    Args:
        arguments: of `python -m rollouts.vllm.serve`, but for where it listens.
        start_timeout: seconds until it must answer.
        owned_folders: removed together with the server when this process dies.
        tcp: listen on a port in any case.
        ports: gives the next port to try.
        key: what it wants to hear; default a new one.
    """

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        start_timeout: float,
        owned_folders: Sequence[Path] = (),
        tcp: bool = False,
        ports: Callable[[], int] = free_port,
        key: str | None = None,
    ):
        self.arguments, self.start_timeout, self.ports = list(arguments), start_timeout, ports
        self.home = Path(tempfile.mkdtemp(prefix="align-vllm-"))  # mode 0700
        self.owned_folders = [self.home, *owned_folders]
        handle, name = tempfile.mkstemp(prefix="align-vllm-", suffix=".log")  # mode 0600
        os.close(handle)
        self.log = Path(name)
        path = self.home / "socket"
        unix = hasattr(socket, "AF_UNIX") and not tcp and len(os.fsencode(path)) <= LONGEST_SOCKET_PATH
        self._socket = path if unix else None
        self._key = key or secrets.token_hex(32)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.RLock()
        self.address: Address | None = Address(f"unix://{path}", self._key) if unix else None
        self.starts = 0
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

    def start(self) -> Address:
        """Starts it and waits until it answers.

        Raises:
            RolloutError: it ended, or gave no answer in time. The log stays.
        """
        with self._lock:
            for attempt in range(1, PORTS_TRIED + 1):
                try:
                    return self._start()
                except RolloutError as error:
                    taken = self._socket is None and "ddress already in use" in str(error)
                    if not taken or attempt == PORTS_TRIED:
                        raise
                    logger.warning("%s; the next port is tried", error)
            raise AssertionError("unreachable: the last attempt returns or raises")

    def restart(self) -> Address:
        """Kills what is left of it and starts it again, at the same place when that is a socket."""
        with self._lock:
            self.kill()
            return self.start()

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
        if self._process is not None:
            if well:
                self._signal(signal.SIGTERM)
                self._signal(signal.SIGCONT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_TIMEOUT)
            self.kill()
        shutil.rmtree(self.home, ignore_errors=True)
        if well:
            self.log.unlink(missing_ok=True)

    def _start(self) -> Address:
        if self._stopped:
            raise RolloutError("this server was stopped")
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            place, url = ["--uds", str(self._socket)], f"unix://{self._socket}"
        else:
            port = self.ports()
            place, url = ["--host", "127.0.0.1", "--port", str(port)], f"http://127.0.0.1:{port}"
        self.starts += 1
        self._spawn(place)
        address = Address(url, self._key)
        self._wait_until_it_answers(address)
        self.address = address
        return address

    def _spawn(self, place: list[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if not _TRAINERS_OWN.fullmatch(name)}
        here = str(Path(__file__).resolve().parents[2])
        paths = [here, *filter(None, [environment.get("PYTHONPATH")])]
        environment |= {KEY_VARIABLE: self._key, "PYTHONPATH": os.pathsep.join(paths)}
        owned = [word for folder in self.owned_folders for word in ("--owner-folder", str(folder))]
        command = [sys.executable, "-P", "-m", "rollouts.vllm.serve", *place, "--owner-pipe", *owned, *self.arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def _wait_until_it_answers(self, address: Address) -> None:
        began = time.monotonic()
        while not self._stopped:
            if not self.alive:
                raise self._start_error(f"ended with code {self._process.returncode if self._process else None}")
            with contextlib.suppress(ServerGone):
                address.ask("/health", timeout=5.0)
                return
            if time.monotonic() - began > self.start_timeout:
                self.kill()
                raise self._start_error(f"gave no answer in start_timeout = {self.start_timeout:g} s")
            time.sleep(0.1)
        self.kill()
        raise RolloutError("this server was stopped")

    def _start_error(self, what: str) -> RolloutError:
        self.kill()
        said = hide(last_error(self.log.read_text(encoding="utf-8", errors="replace")), [self._key])
        said = (said or "it said nothing") + memory_hint(said)
        return RolloutError(f"the vLLM server {what}: {said} (its log: {self.log})")

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def last_error(log: str) -> str:
    """The last line of a log that names an error; else its last line. Pointers to lines above are passed over."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in reversed(lines):
        found = _ERROR.search(line)
        if found and "root cause" not in line:
            return found[1]
    return lines[-1] if lines else ""
