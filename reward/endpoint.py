"""A reward behind an HTTP address: batches of replies go there as JSON, scores come back.

    POST URL  {"inputs": [{"prompt": [{"role": "user", "content": "…"}], "completion": "…", "columns": {…}}, …]}
    200       {"scores": [0.7, …]}        one finite number an input, in order

What can be over in a moment is tried again (no connection, a timeout, 408, 425, 429, 5xx), after a pause that doubles
and is spread by chance, so that many ranks do not come back all at once. Everything else fails at the first answer:
other statuses, redirects (the key would follow them), anything that is not the JSON above.

The key is read from an environment variable when a request is made; it stands in no recipe, log or error, and neither
do the secrets of the address, whatever the server echoes of them (`align.runtime.secrets`). It is sent over TLS, with
the system's certificates; plain http is for loopback addresses, unless one insists. The standard library's client does
all of this; it uses no proxy.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from align.runtime.secrets import hidden_problem, hide, shown_url, url_secrets
from align.runtime.terminal import shortened
from reward.address import url_problem
from reward.protocol import RewardError, RewardUnavailableError, Sample
from reward.scoring import checked

logger = logging.getLogger(__name__)

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
# Whatever the reply; not 403, with which filters answer a single one.
UNAVAILABLE = frozenset({401, 404, 405, 407, 410, 429, 502, 503, 504, *range(300, 400)})
LARGEST = 64 * 2**20  # bytes of an answer that are read
QUOTED = 4096  # bytes of an answer that are looked at for an error


class TryAgain(Exception):
    """A failure that may be over at the next attempt; `kind` is the error that it is after the last."""

    def __init__(self, problem: str, kind: type[RewardError] = RewardError):
        super().__init__(problem)
        self.kind = kind


class EndpointReward:
    """Scores by asking an HTTP endpoint.

    Args:
        url: where to post; https, or http on a loopback address.
        batch_size: replies a request.
        timeout: seconds that one attempt may take, from connecting to the answer's last byte.
        attempts: how often a request is made before giving up.
        backoff: seconds before the second attempt; doubles with each, up to `longest_backoff`. The pause is drawn
            evenly from its upper half.
        api_key_env: the environment variable with the key that is sent as `Authorization: Bearer KEY`.
        insecure: allow plain http to other machines.
        name: for logs and errors.

    Raises:
        ValueError: an address that is none, holds a user name or password, or is plain http to another machine.
    """

    def __init__(
        self,
        url: str,
        *,
        batch_size: int = 64,
        timeout: float = 60.0,
        attempts: int = 4,
        backoff: float = 1.0,
        longest_backoff: float = 30.0,
        api_key_env: str | None = None,
        insecure: bool = False,
        name: str = "endpoint",
    ):
        problem = url_problem(url, insecure) or hidden_problem(url)
        if problem:
            raise ValueError(f"reward {name!r}: {problem}")
        self.name, self.batch_size, self.timeout, self.attempts = name, batch_size, timeout, attempts
        self.backoff, self.longest_backoff, self.api_key_env = backoff, longest_backoff, api_key_env
        self._url = urlsplit(url)
        self.shown_url, self._secrets = shown_url(url), url_secrets(url)
        self._chance = random.Random()  # its own, so that pauses do not move the training's generators

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample.

        Raises:
            RewardError: no usable answer, naming address, status and attempt; a RewardUnavailableError where no reply
                can have to do with it.
        """
        scores: list[float] = []
        for start in range(0, len(samples), self.batch_size):
            batch = samples[start : start + self.batch_size]
            scores += checked(self._scores(self._ask(self._payload(batch)), len(batch)), len(batch), self.name)
        return scores

    def _payload(self, samples: Sequence[Sample]) -> bytes:
        inputs = [
            {
                "prompt": [{"role": turn.role, "content": turn.content} for turn in sample.prompt],
                "completion": sample.completion,
                "columns": sample.columns or {},
            }
            for sample in samples
        ]
        try:
            return json.dumps({"inputs": inputs}, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"reward {self.name!r}: a column of the prompts cannot be sent as JSON ({error})"
            ) from None

    def _scores(self, answer: bytes, count: int) -> list[Any]:
        try:
            scores = json.loads(answer)["scores"]
        except (ValueError, KeyError, TypeError, RecursionError):
            scores = None
        if not isinstance(scores, list) or any(isinstance(s, bool | str | list | dict) for s in scores):
            raise RewardError(
                f'reward {self.name!r}: {self.shown_url} must answer with {{"scores": [{count} numbers]}}, '
                f"it gave {self._quoted(answer)}"
            )
        return scores

    def _ask(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self._authorization()}
        for attempt in range(1, self.attempts + 1):
            try:
                return self._post(body, headers)
            except TryAgain as problem:
                failure = problem
            if attempt < self.attempts:
                pause = min(self.longest_backoff, self.backoff * 2 ** (attempt - 1)) * self._chance.uniform(0.5, 1.0)
                logger.warning(
                    "reward %r: %s %s (attempt %d of %d), once more in %.1f s",
                    *(self.name, self.shown_url, failure, attempt, self.attempts, pause),
                )
                time.sleep(pause)
        raise failure.kind(
            f"reward {self.name!r}: {self.shown_url} {failure} (attempt {self.attempts} of {self.attempts})"
        )

    def _authorization(self) -> dict[str, str]:
        if self.api_key_env is None:
            return {}
        key = os.environ.get(self.api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise RewardUnavailableError(
                f"reward {self.name!r}: the environment variable {self.api_key_env} must hold the key of "
                f"{self.shown_url}, and {'is not set' if not key else 'holds characters that no key has'}"
            )
        return {"Authorization": f"Bearer {key}"}

    def _post(self, body: bytes, headers: dict[str, str]) -> bytes:
        failure: Exception | None = None  # raised where no error of a library is its context: those quote the server
        try:
            with self._connected() as connection:
                target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
                connection.request("POST", target, body, headers)
                response = connection.getresponse()
                answer = response.read(LARGEST + 1)
        except ssl.SSLCertVerificationError as error:
            failure = RewardUnavailableError(
                f"reward {self.name!r}: {self.shown_url} cannot be trusted ({self._hidden(error)})"
            )
        except _Late:
            failure = TryAgain(f"gave no answer in {self.timeout:g} s")
        except (OSError, http.client.HTTPException) as error:
            in_work = isinstance(error, http.client.HTTPException | ConnectionResetError | BrokenPipeError)
            kind = RewardError if in_work else RewardUnavailableError
            what = f"cannot be reached or broke off ({type(error).__name__}: {self._hidden(error)})"
            failure = TryAgain(what, kind)
        if failure is not None:
            raise failure
        if response.length and len(answer) <= LARGEST:  # bytes that were announced and did not come
            raise TryAgain(f"broke off in the middle of its answer, {response.length} bytes before its end")
        if response.status != 200:
            kind = RewardUnavailableError if response.status in UNAVAILABLE else RewardError
            said = f"answered with status {response.status} {self._hidden(response.reason)[:60]}"
            if response.status in AGAIN:
                raise TryAgain(f"{said}: {self._quoted(answer)}", kind)
            raise kind(
                f"reward {self.name!r}: {self.shown_url} {said}, which is not tried again: {self._quoted(answer)}"
            )
        if len(answer) > LARGEST:
            raise RewardError(f"reward {self.name!r}: the answer of {self.shown_url} is over {LARGEST} bytes")
        return answer

    def _hidden(self, said: object) -> str:
        """What the server, or a library about it, says, without the secrets it was told."""
        key = os.environ.get(self.api_key_env or "", "").strip()
        return hide(str(said)[:QUOTED], [*self._secrets, *([key] if key else [])])

    def _quoted(self, answer: bytes) -> str:
        return repr(shortened(self._hidden(answer[:QUOTED].decode("utf-8", errors="replace"))))

    @contextlib.contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        """A connection that is cut when the time is over, however slowly the other side drips.

        Raises:
            _Late: that happened.
        """
        secure = self._url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._url.hostname, self._url.port, timeout=self.timeout)
        late = threading.Event()
        sockets: list[socket.socket] = []  # the connection lets go of its own once the headers are read

        def cut() -> None:
            late.set()
            for own in sockets:
                with contextlib.suppress(OSError):
                    own.shutdown(socket.SHUT_RDWR)

        watchdog = threading.Timer(self.timeout, cut)
        watchdog.daemon = True
        watchdog.start()
        try:
            connection.connect()
            sockets.append(connection.sock)
            if late.is_set():
                raise TimeoutError
            yield connection
        except TimeoutError:
            raise _Late from None
        except (OSError, http.client.HTTPException):
            if late.is_set():
                raise _Late from None
            raise
        finally:
            watchdog.cancel()
            connection.close()
        if late.is_set():  # a cut answer may look like a short one
            raise _Late


class _Late(Exception):
    """An attempt took longer than it may."""
