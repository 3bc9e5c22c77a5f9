"""Asking a vLLM server: JSON over a unix socket or TCP, with the key, one connection a request.

The standard library's client does it. It uses no proxy and follows no redirect (the key would go along).
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import logging
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from align.runtime.secrets import hide, shown_url
from rollouts.errors import RolloutError

logger = logging.getLogger(__name__)

LARGEST = 256 * 2**20  # bytes of an answer that are read
QUOTED = 4096  # bytes of an answer that are looked at for an error


class ServerGone(Exception):
    """No connection, one that broke off, an answer of 5xx or none in time: the server is down, dead or hangs."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is and what it wants to hear.

    Attributes:
        url: http://HOST:PORT, https://HOST:PORT or unix:///PATH/OF/SOCKET.
        key: sent with every request; not shown in any text.
    """

    url: str
    key: str = field(repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            sound = parts.path.startswith("/") and not parts.netloc
        else:
            sound = parts.scheme in ("http", "https") and _names_a_host(parts) and parts.path in ("", "/")
        if not sound or parts.username or parts.password or parts.query or parts.fragment:
            raise RolloutError(
                f"'{shown_url(self.url)}' is no address of a vLLM server: write http://HOST:PORT, https://HOST:PORT or unix:///PATH"
            )

    @property
    def in_the_clear(self) -> bool:
        """Whether the key travels to another machine unencrypted."""
        parts = urlsplit(self.url)
        return parts.scheme == "http" and not _is_loopback(parts.hostname or "")

    def ask(self, path: str, body: dict[str, Any] | None = None, *, timeout: float) -> Any:
        """GET without a body, POST with one. Returns the decoded JSON, None for an empty answer.

        Raises:
            ServerGone: the server is not there, or not well.
            RolloutError: it refuses: a wrong key, a wrong request.
        """
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection = self._connection(timeout)
        failure: Exception | None = None  # raised where no error of a library is its context: those quote the server
        try:
            connection.request("GET" if body is None else "POST", path, content, headers)
            response = connection.getresponse()
            answer = response.read(LARGEST + 1)
        except ssl.SSLCertVerificationError as error:
            failure = RolloutError(f"the vLLM server {self.url} cannot be trusted ({self._hidden(error)})")
        except TimeoutError:
            failure = ServerGone(f"gave no answer to {path} in {timeout:g} s")
        except (OSError, http.client.HTTPException) as error:
            failure = ServerGone(f"cannot be reached or broke off ({type(error).__name__}: {self._hidden(error)})")
        finally:
            connection.close()
        if failure is not None:
            raise failure
        return self._judged(path, response.status, answer)

    def _judged(self, path: str, status: int, answer: bytes) -> Any:
        if status == 200:
            if len(answer) > LARGEST:
                raise RolloutError(f"the answer of the vLLM server {self.url} to {path} is over {LARGEST} bytes")
            try:
                return json.loads(answer) if answer else None
            except ValueError:
                raise RolloutError(f"the vLLM server {self.url} answered {path} with no JSON") from None
        if status in (401, 403):
            raise RolloutError(
                f"the vLLM server {self.url} does not take the key (status {status}): "
                "set the variable that api_key_env names to the one the server was started with"
            )
        said = self._hidden(answer[:QUOTED].decode("utf-8", errors="replace"))[:300]
        if status >= 500 or status == 429:
            raise ServerGone(f"answered {path} with status {status}: {said}")
        if status == 404:
            raise RolloutError(
                f"the vLLM server {self.url} has no {path}: start it with `python -m rollouts.vllm.serve`"
            )
        raise RolloutError(f"the vLLM server {self.url} refused {path} with status {status}: {said}")

    def _hidden(self, said: object) -> str:
        """What the server, or a library about it, says, without the key."""
        return hide(str(said)[:QUOTED], [self.key])

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return _UnixConnection(parts.path, timeout)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=timeout)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _names_a_host(parts: SplitResult) -> bool:
    try:
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, or too large
        return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, like 127.0.0.1.example
        return False
