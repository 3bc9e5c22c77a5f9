"""What a vLLM server does with weights that come over HTTP: they are put down beside it, whole and checked, or not at
all. It is an ASGI middleware (vLLM's `--middleware`) behind the one that wants the key (`rollouts.vllm.auth`).

    POST /align/weights            {"files": {DIGEST: BYTES, …}}: what the next weights are. The answer says where they
                                   lie, and of each that is not whole yet how many bytes have come
    PUT  /align/weights/DIGEST/N   the bytes from the Nth on, at most `LARGEST_PART`

A file's name is its SHA-256, so one that the last weights had too is not sent again, and a transfer that broke off goes
on where it was. Nothing of the model changes here: the workers load the files when all are there, by the call that
loads files which were always beside them (`rollouts.vllm.worker`). What the next weights do not have is removed when
they are announced.

Memory: what one message of the connection holds (some 64 KiB). The files are in memory (/dev/shm) or on disk, as
`rollouts.vllm.weights.private_folder` finds room, and go with the process; one that is killed leaves them
(align-vllm-*).
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rollouts.errors import RolloutError
from rollouts.vllm.auth import App, Receive, Scope, Send
from rollouts.vllm.weights import private_folder

logger = logging.getLogger(__name__)

ROUTE = "/align/weights"
LARGEST_LIST = 16 * 2**20  # bytes of an announcement: some 180000 files
LARGEST_PART = 16 * 2**20  # bytes of one PUT
ENDING = ".safetensors"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PLACE = re.compile(rf"{ROUTE}/([0-9a-f]{{64}})/(\d{{1,15}})")


class Refused(Exception):
    """An HTTP status, and why."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


@dataclass(slots=True)
class _File:
    """One that is announced.

    Attributes:
        size: bytes that it has when it is whole.
        there: bytes that have come.
        sum: of these.
        turns: requests that have begun to bring some; only the last one may, so that a connection which died without
            a word holds nobody up.
    """

    size: int
    there: int = 0
    sum: Any = field(default_factory=hashlib.sha256)
    turns: int = 0


class Incoming:
    """The files of the weights that were announced last."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._files: dict[str, _File] = {}

    def announce(self, files: Mapping[str, int]) -> dict[str, Any]:
        """What is to come, each digest with a size in bytes; the answer of the route.

        Raises:
            Refused: there is no room for them.
        """
        if self.folder is None:
            try:
                self.folder = private_folder(sum(files.values()))
            except (RolloutError, OSError) as error:
                raise Refused(507, f"there is no place for weights here ({error})") from None
            atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        for digest in [digest for digest, file in self._files.items() if files.get(digest) != file.size]:
            self._drop(digest)
        for digest, size in files.items():
            self._files.setdefault(digest, _File(size))
        missing = {digest: file.there for digest in files if (file := self._files[digest]).there < file.size}
        needed = sum(self._files[digest].size - there for digest, there in missing.items())
        if needed > (free := shutil.disk_usage(self.folder).free):
            raise Refused(507, f"{self.folder} has room for {free} bytes, the weights need {needed} more")
        return {"folder": str(self.folder), "missing": missing}

    def begin(self, digest: str, start: int, length: int) -> _File:
        """A file that is to get `length` bytes now.

        Raises:
            Refused: it is not announced, or goes on elsewhere (409); these are too many (413).
        """
        file = self._files.get(digest)
        if file is None or file.there != start:
            state = "not announced" if file is None else f"at byte {file.there}"
            raise Refused(409, f"the file is {state}: ask what is missing")
        if length > min(LARGEST_PART, file.size - start):
            raise Refused(413, f"at most {min(LARGEST_PART, file.size - start)} bytes may come here")
        file.turns += 1
        return file

    def end(self, digest: str, file: _File) -> None:
        """After the last byte that came.

        Raises:
            Refused: the file is not wanted any more, or is whole and another one (409): it is to come anew.
        """
        if self._files.get(digest) is not file:
            raise Refused(409, "other weights were announced meanwhile")
        if file.there < file.size:
            return
        if file.sum.hexdigest() != digest:
            logger.warning("a file of weights was not what its checksum says; it is asked for again")
            self._drop(digest)
            raise Refused(409, "the file is not what its checksum says: send it again")
        self.part(digest).rename(self.folder / f"{digest}{ENDING}")

    def part(self, digest: str) -> Path:
        """Where the file is while it comes."""
        assert self.folder is not None
        return self.folder / f"{digest}.part"

    def _drop(self, digest: str) -> None:
        del self._files[digest]
        self.part(digest).unlink(missing_ok=True)
        (self.folder / f"{digest}{ENDING}").unlink(missing_ok=True)


class ReceiveWeights:
    """ASGI middleware: answers `ROUTE`, and hands everything else on.

    Args:
        app: what stands behind it.
    """

    def __init__(self, app: App):
        self.app, self.incoming = app, Incoming()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(ROUTE):
            await self.app(scope, receive, send)
            return
        try:
            status, answer = 200, await self._answer(scope, receive)
        except Refused as refused:
            status, answer = refused.status, {"error": str(refused)}
        except OSError as error:
            status, answer = 507, {"error": f"the weights cannot be written ({error.strerror or error})"}
        body = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [] if status == 200 else [(b"connection", b"close")]  # the rest of the request is not read
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        if (scope["method"], scope["path"]) == ("POST", ROUTE):
            return self.incoming.announce(_announced(await _whole(receive)))
        place = _PLACE.fullmatch(scope["path"])
        if scope["method"] != "PUT" or place is None:
            raise Refused(404, f"there are POST {ROUTE} and PUT {ROUTE}/DIGEST/START")
        return await self._take(place[1], int(place[2]), _length(scope), receive)

    async def _take(self, digest: str, start: int, length: int, receive: Receive) -> dict[str, Any]:
        file = self.incoming.begin(digest, start, length)
        turn = file.turns
        try:
            with self.incoming.part(digest).open("ab" if start else "wb") as out:
                async for content in _messages(receive):
                    if file.turns != turn:
                        raise Refused(409, "another request brings it now")
                    if file.there + len(content) > start + length:
                        raise Refused(413, "more came than was announced")
                    out.write(content)
                    out.flush()
                    file.sum.update(content)
                    file.there += len(content)
        except OSError:
            file.there, file.sum = 0, hashlib.sha256()  # what the disk has of it is not known
            raise
        self.incoming.end(digest, file)
        return {"there": file.there}


def _announced(body: bytes) -> dict[str, int]:
    try:
        files = json.loads(body)["files"]
        sound = all(_DIGEST.fullmatch(name) and type(size) is int and 0 < size < 2**50 for name, size in files.items())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise Refused(400, 'expected {"files": {SHA-256: BYTES, …}}')
    return files


def _length(scope: Scope) -> int:
    found = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), b"")
    if not (found.isdigit() and len(found) <= 15):
        raise Refused(411, "the request must say its length")
    return int(found)


async def _whole(receive: Receive) -> bytes:
    body = bytearray()
    async for content in _messages(receive):
        body += content
        if len(body) > LARGEST_LIST:
            raise Refused(413, f"an announcement has at most {LARGEST_LIST} bytes")
    return bytes(body)


async def _messages(receive: Receive) -> Any:
    """The content of a request, as it comes; it ends where the other side goes away."""
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        yield message.get("body", b"")
        more = message.get("more_body", False)
