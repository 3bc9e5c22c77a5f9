"""An HTTP address that is asked with JSON and a key: what fails is tried again, told or given up; no secret is shown.

What can be over in a moment is tried again (no connection, a timeout, 408, 425, 429, 5xx), after a pause that doubles
and is spread by chance, so that many ranks do not come back all at once; a longer one that the server asks for
(Retry-After) is kept. Everything else fails at the first answer: other statuses, redirects (the key would follow them).

The key is read from an environment variable when a request is made; it stands in no recipe, log or error, and neither
do the secrets of the address, whatever the server echoes of them (`align.runtime.secrets`). It is sent over TLS; plain
http is for loopback addresses, unless one insists. `align.runtime.http` does the asking.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable

from align.runtime import http
from align.runtime.address import url_problem
from align.runtime.json_files import parse_json
from align.runtime.secrets import hidden_problem, shown_url, url_secrets
from align.runtime.terminal import shortened
from reward.protocol import RewardError, RewardUnavailableError

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
# Whatever the reply; not 403, with which filters answer a single one.
UNAVAILABLE = frozenset({401, 404, 405, 407, 410, 429, 502, 503, 504, *range(300, 400)})
LARGEST = 64 * 2**20  # bytes of an answer that are read

logger = logging.getLogger(__name__)


class TryAgain(Exception):
    """A failure that may be over at the next attempt.

    Attributes:
        kind: the error that it is after the last.
        pause: seconds that the server asked to be left alone.
    """

    def __init__(self, problem: str, kind: type[RewardError] = RewardError, pause: float = 0.0):
        super().__init__(problem)
        self.kind, self.pause = kind, pause


class Endpoint:
    """One address with its key.

    Args:
        called: the subject of errors and logs ("reward 'endpoint'").
        url, timeout, attempts, backoff, longest_backoff, api_key_env, insecure: see `reward.endpoint.EndpointReward`.

    Raises:
        ValueError: an address that is none, holds a user name or password, or is plain http to another machine.
    """

    def __init__(
        self,
        called: str,
        url: str,
        *,
        timeout: float,
        attempts: int,
        backoff: float,
        longest_backoff: float = 30.0,
        api_key_env: str | None = None,
        insecure: bool = False,
    ):
        problem = url_problem(url, insecure) or hidden_problem(url)
        if problem:
            raise ValueError(f"{called}: {problem}")
        self.called, self.url, self.timeout, self.attempts = called, url, timeout, attempts
        self.backoff, self.longest_backoff, self.api_key_env = backoff, longest_backoff, api_key_env
        self.shown_url, self._secrets = shown_url(url), url_secrets(url)
        self._chance = random.Random()  # its own, so that pauses do not move the training's generators

    def ask(self, body: bytes, url: str | None = None) -> http.Answer:
        """The answer of status 200 to what is posted, at most `LARGEST` bytes.

        Args:
            url: another address on that server.

        Raises:
            RewardError: there is none; names address, status and attempt. A RewardUnavailableError where what was
                posted can have nothing to do with it.
        """
        return self._retried(lambda: self._usable(self._said(url or self.url, body)))

    def look_up(self, url: str) -> http.Answer:
        """What is found at an address on that server, of whatever status that is not tried again."""
        return self._retried(lambda: self._there(self._said(url, None)))

    def unusable(self, answer: http.Answer, expected: str) -> RewardError:
        """The error of an answer that is not what was to be answered."""
        return RewardError(f"{self.called}: {self.shown_url} must answer with {expected}, it gave {_quoted(answer)}")

    def _retried(self, attempt: Callable[[], http.Answer]) -> http.Answer:
        try:
            return http.retried(
                attempt,
                TryAgain,
                attempts=self.attempts,
                backoff=self.backoff,
                longest=self.longest_backoff,
                chance=self._chance,
                tell=self._tell,
            )
        except TryAgain as failure:
            raise failure.kind(
                f"{self.called}: {self.shown_url} {failure} (attempt {self.attempts} of {self.attempts})"
            ) from None

    def _tell(self, failure: Exception, number: int, pause: float) -> None:
        logger.warning(
            "%s: %s %s (attempt %d of %d), once more in %.1f s",
            *(self.called, self.shown_url, failure, number, self.attempts, pause),
        )

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise RewardUnavailableError(
                f"{self.called}: the environment variable {self.api_key_env} must hold the key of "
                f"{self.shown_url}, and {'is not set' if not key else 'holds characters that no key has'}"
            )
        return key

    def _said(self, url: str, body: bytes | None) -> http.Answer:
        """What one request is answered, whatever its status. Raises TryAgain where there is no answer."""
        key = self._key()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        known = [*self._secrets, *([key] if key else [])]
        try:
            return http.ask(url, body, headers=headers, timeout=self.timeout, largest=LARGEST, secrets=known)
        except http.Untrusted as error:
            raise RewardUnavailableError(f"{self.called}: {self.shown_url} {error}") from None
        except http.NoAnswer as error:
            kind = RewardUnavailableError if isinstance(error, http.Unreachable) else RewardError
            raise TryAgain(str(error), kind) from None

    def _there(self, answer: http.Answer) -> http.Answer:
        if answer.status in AGAIN:
            kind = RewardUnavailableError if answer.status in UNAVAILABLE else RewardError
            said = f"answered with status {answer.status} {answer.reason}: {_quoted(answer)}"
            raise TryAgain(said, kind, answer.retry_after)
        return answer

    def _usable(self, answer: http.Answer) -> http.Answer:
        if self._there(answer).status != 200:
            kind = RewardUnavailableError if answer.status in UNAVAILABLE else RewardError
            said = f"answered with status {answer.status} {answer.reason}, which is not tried again"
            raise kind(f"{self.called}: {self.shown_url} {said}: {_quoted(answer)}")
        if len(answer.content) > LARGEST:
            raise RewardError(f"{self.called}: the answer of {self.shown_url} is over {LARGEST} bytes")
        return answer


def _quoted(answer: http.Answer) -> str:
    """The beginning of what was answered; more of the sentence in an error as vLLM, OpenAI and our server write it, or
    transformers."""
    said = parse_json(answer.said)
    error = said.get("error", said) if isinstance(said, dict) else None
    message = error.get("message", error.get("detail")) if isinstance(error, dict) else None
    return repr(shortened(message, 200) if isinstance(message, str) else shortened(answer.said))
