"""The one HTTP client: a request with a deadline for the whole of it, tried again where the caller says so.

On httpcore2, the transport below the client that huggingface_hub brings along (by the maintainers of httpx, BSD-3): it
follows no redirect, asks no proxy and keeps no cookie, so a key goes to the named address alone, and its sockets can be
given a deadline that holds against a server that drips. One connection a request; certificates are the system's.
"""

from __future__ import annotations

import logging
import random
import ssl
import string
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpcore2

from align.runtime.errors import AlignError
from align.runtime.secrets import hide

QUOTED = 4096  # bytes of an answer that are looked at for an error
SLICE = 64 * 2**10  # bytes that are sent under one look at the clock
LONGEST_ASKED = 120.0  # seconds of a pause that a server asks for

logging.getLogger("httpcore2").setLevel(logging.INFO)  # its DEBUG lines hold what a server echoes, a key maybe

T = TypeVar("T")


class NoAnswer(AlignError):
    """No whole answer came: what happened, in words that follow an address and hold no secret."""


class Late(NoAnswer):
    """Not in time."""


class Unreachable(NoAnswer):
    """There was no connection; the server was told nothing."""


class BrokenOff(NoAnswer):
    """The connection ended in the middle, or what came is no HTTP."""


class Untrusted(NoAnswer):
    """Nobody vouches for the server's certificate; it was told nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said.

    Attributes:
        status: 200 when all is well.
        reason: the server's words for it, without secrets.
        content: what it sent; one byte more than `largest` where there was more.
        secrets: what no text may show.
        retry_after: seconds that it asks to be left alone, at most `LONGEST_ASKED`; 0 where it does not.
    """

    status: int
    reason: str
    content: bytes
    secrets: tuple[str, ...] = field(repr=False)
    retry_after: float = 0.0

    @property
    def said(self) -> str:
        """The beginning of the content as text, without secrets."""
        return _hidden(self.content[:QUOTED].decode("utf-8", errors="replace"), self.secrets)


def ask(
    url: str,
    content: bytes | None = None,
    *,
    headers: Mapping[str, str],
    timeout: float,
    largest: int,
    secrets: Iterable[str] = (),
    socket: str | None = None,
    method: str | None = None,
) -> Answer:
    """One request: POST with content, GET without, or `method`.

    Args:
        url: http or https, with the target on that server.
        timeout: seconds from connecting to the last byte; only finding the host may take longer.
        largest: bytes of the answer that are read.
        secrets: never shown, whatever the server makes of them.
        socket: path of a unix socket to ask in place of the url's host.

    Raises:
        NoAnswer: one of its kinds; no error of the library is its context, as those quote the server.
    """
    failure: NoAnswer | None = None
    secrets = tuple(secrets)
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        place = httpcore2.URL(
            scheme=parts.scheme,
            host=host if host.isascii() else host.encode("idna"),
            port=parts.port,
            target=quote((parts.path or "/") + (parts.query and f"?{parts.query}"), safe=string.punctuation),
        )
        sent = {"Host": parts.netloc, "Accept-Encoding": "identity", **headers}
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        pool = httpcore2.ConnectionPool(ssl_context=tls, uds=socket, network_backend=_InTime(timeout))
        verb = method or ("GET" if content is None else "POST")
        with pool, pool.stream(verb, place, headers=sent, content=content) as response:
            received, failure = _received(response, largest)
        reason = _hidden(response.extensions["reason_phrase"].decode("latin-1"), secrets)[:60]
    except httpcore2.TimeoutException:
        failure = Late(f"gave no answer in {timeout:g} s")
    except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError, UnicodeError) as error:
        failure = _failure(error, secrets)
    if failure is not None:
        raise failure
    return Answer(response.status, reason, received, secrets, _retry_after(response.headers))


def retried(
    attempt: Callable[[], T],
    again: type[Exception],
    *,
    attempts: int,
    backoff: float,
    longest: float,
    chance: random.Random,
    tell: Callable[[Exception, int, float], None],
) -> T:
    """What `attempt` gives, tried again after a pause when it raises `again`.

    The pause is `backoff` seconds, then twice as long each time, up to `longest`; it is drawn evenly from its upper
    half, so that many ranks do not come back all at once. A failure's `pause`, in seconds, is kept where it is longer.

    Args:
        chance: the caller's own, so that pauses do not move the training's generators.
        tell: hears the failure, the number of the attempt, and the seconds until the next.

    Raises:
        Exception: `again` of the last attempt.
    """
    for number in range(1, attempts + 1):
        try:
            return attempt()
        except again as failure:
            if number == attempts:
                raise
            pause = min(longest, backoff * 2 ** (number - 1)) * chance.uniform(0.5, 1.0)
            pause = max(pause, getattr(failure, "pause", 0.0))
            tell(failure, number, pause)
        time.sleep(pause)
    raise ValueError(f"attempts must be at least 1, got {attempts}")


def _received(response: httpcore2.Response, largest: int) -> tuple[bytes, NoAnswer | None]:
    """The content up to one byte more than `largest`, and what it is short of the length that was announced."""
    content = bytearray()
    announced = next((int(value) for name, value in response.headers if name.lower() == b"content-length"), None)
    try:
        for chunk in response.iter_stream():
            content += chunk
            if len(content) > largest:
                return bytes(content[: largest + 1]), None
    except httpcore2.RemoteProtocolError:
        if announced is None:
            raise
        missing = announced - len(content)
        return b"", BrokenOff(f"broke off in the middle of its answer, {missing} bytes before its end")
    return bytes(content), None


def _retry_after(headers: list[tuple[bytes, bytes]]) -> float:
    """RFC 9110: a number of seconds, or a date."""
    said = next((value.decode("latin-1").strip() for name, value in headers if name.lower() == b"retry-after"), "")
    if said.isdecimal():
        return min(float(said[:9]), LONGEST_ASKED)
    try:
        seconds = parsedate_to_datetime(said).timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_ASKED)


def _failure(error: Exception, secrets: tuple[str, ...]) -> NoAnswer:
    cause = next((inner for inner in error.args if isinstance(inner, OSError)), error)  # what httpcore2 wraps
    said = _hidden(str(cause), secrets)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Untrusted(f"cannot be trusted ({said})")
    told = isinstance(error, httpcore2.ReadError | httpcore2.WriteError | httpcore2.ProtocolError)
    return (BrokenOff if told else Unreachable)(f"cannot be reached or broke off ({type(cause).__name__}: {said})")


def _hidden(said: str, secrets: tuple[str, ...]) -> str:
    return hide(said[:QUOTED], secrets)


class _InTime(httpcore2.NetworkBackend):
    """Sockets of one request, whose every wait ends when the time of all is over."""

    def __init__(self, seconds: float):
        self._end, self._backend = time.monotonic() + seconds, httpcore2.SyncBackend()

    def left(self) -> float:
        """Seconds."""
        if (left := self._end - time.monotonic()) <= 0:
            raise httpcore2.ReadTimeout
        return left

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *options: Any, **more: Any) -> _Stream:
        return _Stream(self._backend.connect_tcp(host, port, self.left(), *options, **more), self)

    def connect_unix_socket(self, path: str, timeout: float | None = None, **more: Any) -> _Stream:
        return _Stream(self._backend.connect_unix_socket(path, self.left(), **more), self)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream, time: _InTime):
        self._stream, self._time = stream, time

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._time.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), SLICE):
            self._stream.write(buffer[start : start + SLICE], self._time.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: Any = None
    ) -> _Stream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._time.left()), self._time)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
