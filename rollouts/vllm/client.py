"""Asking one vLLM server: JSON over a unix socket or TCP, with the key, by `align.runtime.http`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from align.runtime import http
from align.runtime.address import is_loopback
from align.runtime.secrets import shown_url
from rollouts.errors import RolloutError

LARGEST = 256 * 2**20  # bytes of an answer that are read
SHORT = 30.0  # seconds for a question that costs no work


class ServerGone(Exception):
    """No connection, one that broke off, an answer of 5xx or none in time: the server is down, dead or hangs.

    Attributes:
        connected: there was somebody.
    """

    def __init__(self, problem: str, connected: bool = True):
        super().__init__(problem)
        self.connected = connected


@dataclass(frozen=True, slots=True)
class Client:
    """Where a server is, and what it wants to hear.

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
                f"'{shown_url(self.url)}' is no address of a vLLM server: write http://HOST:PORT, https://HOST:PORT "
                "or unix:///PATH"
            )

    @property
    def in_the_clear(self) -> bool:
        """Whether the key travels to another machine unencrypted."""
        parts = urlsplit(self.url)
        return parts.scheme == "http" and not is_loopback(parts.hostname or "")

    def ask(self, path: str, body: dict[str, Any] | None = None, *, timeout: float) -> Any:
        """GET without a body, POST with one. Returns the decoded JSON, None for an empty answer.

        Args:
            timeout: seconds for all of it.

        Raises:
            ServerGone: the server is not there, or not well.
            RolloutError: it refuses: a wrong key, a wrong request.
        """
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        return self._judged(path, self._answer(path, content, "application/json", timeout))

    def put(self, path: str, content: bytes, *, timeout: float) -> bool:
        """PUT of bytes; whether the server took them. False: they are not the ones that it waits for (409).

        Raises:
            ServerGone, RolloutError: as `ask`.
        """
        answer = self._answer(path, content, "application/octet-stream", timeout, "PUT")
        if answer.status != 409:
            self._judged(path, answer)
        return answer.status != 409

    def _answer(
        self, path: str, content: bytes | None, kind: str, timeout: float, method: str | None = None
    ) -> http.Answer:
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": kind}
        unix = urlsplit(self.url).path if self.url.startswith("unix:") else None
        url = f"http://localhost{path}" if unix else self.url.rstrip("/") + path
        how = {"timeout": timeout, "largest": LARGEST, "secrets": [self.key], "socket": unix, "method": method}
        failure: Exception | None = None
        try:
            return http.ask(url, content, headers=headers, **how)
        except http.Late:
            failure = ServerGone(f"gave no answer to {path} in {timeout:g} s")
        except http.Untrusted as error:
            failure = RolloutError(f"the vLLM server {self.url} {error}")
        except http.NoAnswer as error:
            failure = ServerGone(str(error), not isinstance(error, http.Unreachable))
        raise failure

    def _judged(self, path: str, answer: http.Answer) -> Any:
        status = answer.status
        if status == 200:
            if len(answer.content) > LARGEST:
                raise RolloutError(f"the answer of the vLLM server {self.url} to {path} is over {LARGEST} bytes")
            try:
                return json.loads(answer.content) if answer.content else None
            except ValueError:
                raise RolloutError(f"the vLLM server {self.url} answered {path} with no JSON") from None
        if status in (401, 403):
            raise RolloutError(
                f"the vLLM server {self.url} does not take the key (status {status}): "
                "set the variable that api_key_env names to the one the server was started with"
            )
        if status >= 500 or status == 429:
            raise ServerGone(f"answered {path} with status {status}: {answer.said[:300]}")
        if status == 404:
            raise RolloutError(
                f"the vLLM server {self.url} has no {path}: start it with `python -m rollouts.vllm.serve`"
            )
        raise RolloutError(f"the vLLM server {self.url} refused {path} with status {status}: {answer.said[:300]}")


def _names_a_host(parts: SplitResult) -> bool:
    try:
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, or too large
        return False
