"""How one server gets the weights that were pushed last.

A server that sees the push's folder reads the files there. One that does not, on another machine, gets them over HTTP
first (`rollouts.vllm.receive`): those that it does not have from the push before, in parts of some MiB, each file with
its SHA-256. What breaks off goes on where it was. Which of the two it is, is asked and not told: a file with a random
word lies in the folder, and the server says whether it reads that word. Neither can then be set wrongly.

Loading is one call, whichever way the files came, and comes after they are there and whole: until then the server has
its old weights, under their old name. While it loads, and for ever if that fails, its replies carry a name that nobody
accepts. So no reply is made by a mixture.

Memory here: a part of a file.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from rollouts.errors import RolloutError
from rollouts.vllm.client import SHORT, Client, ServerGone
from rollouts.vllm.receive import ENDING, LARGEST_PART, ROUTE
from rollouts.vllm.weights import Push, write_push

logger = logging.getLogger(__name__)

PART_TIMEOUT = 120.0  # seconds for one part; at LARGEST_PART that is 1.1 Mbit/s
FRUITLESS = 3  # attempts in a row that bring nothing across
PAUSE = 0.5  # seconds between two attempts


class Delivery:
    """The weights pushed last, and bringing them to a server.

    Args:
        mark: begins the name of every version of this engine's weights; nobody else's do.
        timeout: seconds that a server may take to load them.

    Attributes:
        pushed: the weights; every rank is to set it.
    """

    def __init__(self, mark: str, timeout: float):
        self.mark, self.timeout = mark, timeout
        self.pushed: Push | None = None
        self._base: Push | None = None
        self._summing = threading.Lock()
        self._sums: dict[tuple[str, int], str] = {}  # of a file, by its name and time

    @property
    def version(self) -> str:
        """The name of the pushed weights."""
        assert self.pushed is not None
        return f"{self.mark}-{self.pushed.version}"

    @property
    def changing(self) -> str:
        """The name of weights that are being replaced, or were left half replaced."""
        return f"{self.mark}-changing"

    def write(self, stream: Iterable[tuple[str, Tensor]], folder: Path, version: int) -> None:
        """Puts new weights into `folder`. Raises RolloutError where there is no room."""
        self.pushed = self._base = None
        self.pushed = self._base = write_push(folder, stream, version)

    def write_adapter(self, stream: Iterable[tuple[str, Tensor]], folder: Path, version: int) -> None:
        """Puts changes of the weights that were written last (`rollouts.vllm.low_rank`) beside them; what changes the
        last ones were is forgotten. Raises RolloutError where there is no room."""
        assert self._base is not None
        self.pushed = None
        self.pushed = self._base + write_push(folder, stream, version, "adapter")

    def bring(self, client: Client, *, sees: bool) -> None:
        """Has the server load the pushed weights; nothing, where there are none.

        Args:
            sees: the folder of the push.

        Raises:
            ServerGone: it cannot be reached, or is not well.
            RolloutError: it refused them.
        """
        push = self.pushed
        if push is None:
            return
        folder, files = (str(push.folder), push.files) if sees else self._upload(client, push)
        client.ask("/update_weight_version", {"new_version": self.changing}, timeout=SHORT)
        call = {"method": "align_pull", "args": [folder, files, push.digest]}
        for result in client.ask("/collective_rpc", call, timeout=self.timeout)["results"]:
            if result["problem"] is not None:
                state = "are undefined now" if result["undefined"] else "are the old ones"
                raise RolloutError(
                    f"the vLLM server {client.url} did not take the weights of version {push.version}, its own "
                    f"{state}: {result['problem']}"
                )
        reset_cache(client)
        client.ask("/update_weight_version", {"new_version": self.version}, timeout=SHORT)

    def _upload(self, client: Client, push: Push) -> tuple[str, list[list[Any]]]:
        """Where the server has the files, and their names there."""
        if not push.folder.is_dir():
            raise ServerGone("needs the weights anew, and this machine does not have them: the next push brings them")
        began, sums = time.monotonic(), self._sums_of(push)
        sizes = {digest: size for digest, (_, size) in zip(sums, push.files, strict=True)}
        paths = dict(zip(sums, push.paths, strict=True))
        sent, fruitless, least = 0, 0, None
        while True:
            answer = client.ask(ROUTE, {"files": sizes}, timeout=SHORT)
            missing = answer["missing"]
            left = sum(sizes[digest] - there for digest, there in missing.items())
            if not missing:
                break
            fruitless = 0 if least is None or left < least else fruitless + 1
            least = left if least is None else min(least, left)
            if fruitless == FRUITLESS:
                raise ServerGone(f"took nothing more of its weights in {FRUITLESS} attempts, {left} bytes are missing")
            try:
                for digest, there in missing.items():
                    sent += _send(client, digest, paths[digest], there)
            except ServerGone as gone:
                logger.warning("the vLLM server %s %s: its weights go on where they were", client.url, gone)
                time.sleep(PAUSE)
        seconds, whole = time.monotonic() - began, sum(sizes.values())
        logger.debug("%s got %d of %d bytes in %.1f s", client.url, sent, whole, seconds)
        return answer["folder"], [[digest + ENDING, sizes[digest]] for digest in sums]

    def _sums_of(self, push: Push) -> list[str]:
        """SHA-256 of each file, worked out once, and only where some server is elsewhere."""
        with self._summing:
            keys = [(path.name, path.stat().st_mtime_ns) for path in push.paths]
            known = {key: self._sums.get(key) or _sum_of(path) for key, path in zip(keys, push.paths, strict=True)}
            self._sums = known
        return [known[key] for key in keys]


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _send(client: Client, digest: str, path: Path, start: int) -> int:
    """Bytes of the file that went over; ends early where the server waits for others."""
    sent = 0
    with path.open("rb") as file:
        file.seek(start)
        while part := file.read(LARGEST_PART):
            if not client.put(f"{ROUTE}/{digest}/{start + sent}", part, timeout=PART_TIMEOUT):
                time.sleep(PAUSE)
                break
            sent += len(part)
    return sent


def reset_cache(client: Client) -> None:
    """Keys and values of older weights must not be read; the server refuses while it still works.

    Raises:
        RolloutError: it works for somebody else.
    """
    deadline = time.monotonic() + SHORT
    while not client.ask("/reset_prefix_cache", {}, timeout=SHORT)["success"]:
        if time.monotonic() > deadline:
            raise RolloutError(f"the vLLM server {client.url} is busy with somebody else's requests")
        time.sleep(0.05)


def sees(client: Client, folder: Path) -> bool:
    """Whether all workers of the server read what lies in `folder` here.

    Raises:
        ServerGone, RolloutError: as `Client.ask`.
    """
    word, path = secrets.token_hex(16), folder / "seen"
    path.write_text(word)
    try:
        call = {"method": "align_sees", "args": [str(path), word]}
        return all(client.ask("/collective_rpc", call, timeout=SHORT)["results"])
    finally:
        path.unlink(missing_ok=True)
