"""A reward behind an HTTP address: batches of replies go there as JSON, scores come back.

    POST URL  {"inputs": [{"prompt": [{"role": "user", "content": "…"}], "completion": "…", "columns": {…}}, …]}
    200       {"scores": [0.7, …]}        one finite number an input, in order

An address that ends with `/pooling` or `/classify` is asked as vLLM's pooling models are, a request a reply, several at
once, without the sigmoid that is their default; one without a path is asked once what it is, by `/health` and
`/version`: `align serve-reward`, whose `/score` is then asked, vLLM, whose `/classify` is, or any other, which is asked
itself.

What can be over in a moment is tried again (no connection, a timeout, 408, 425, 429, 5xx), after a pause that doubles
and is spread by chance, so that many ranks do not come back all at once. Everything else fails at the first answer:
other statuses, redirects (the key would follow them), anything that is not the JSON above.

The key is read from an environment variable when a request is made; it stands in no recipe, log or error, and neither
do the secrets of the address, whatever the server echoes of them (`align.runtime.secrets`). It is sent over TLS; plain
http is for loopback addresses, unless one insists. `align.runtime.http` does the asking.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from align.runtime import http
from align.runtime.address import url_problem
from align.runtime.json_files import parse_json
from align.runtime.secrets import hidden_problem, shown_url, url_secrets
from align.runtime.terminal import shortened
from reward.protocol import RewardError, RewardUnavailableError, Sample
from reward.scoring import checked

logger = logging.getLogger(__name__)

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
# Whatever the reply; not 403, with which filters answer a single one.
UNAVAILABLE = frozenset({401, 404, 405, 407, 410, 429, 502, 503, 504, *range(300, 400)})
LARGEST = 64 * 2**20  # bytes of an answer that are read
VLLM = ("/pooling", "/classify")  # where its pooling models are asked
OURS = "align serve-reward"  # what its `/health` calls itself


class TryAgain(Exception):
    """A failure that may be over at the next attempt; `kind` is the error that it is after the last."""

    def __init__(self, problem: str, kind: type[RewardError] = RewardError):
        super().__init__(problem)
        self.kind = kind


class EndpointReward:
    """Scores by asking an HTTP endpoint.

    Args:
        url: where to post; https, or http on a loopback address.
        batch_size: replies a request; of vLLM's shape, requests at once.
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
        attempts: int = 6,
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
        self._url = url
        self.shown_url, self._secrets = shown_url(url), url_secrets(url)
        self._chance = random.Random()  # its own, so that pauses do not move the training's generators

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample.

        Raises:
            RewardError: no usable answer, naming address, status and attempt; a RewardUnavailableError where no reply
                can have to do with it.
        """
        if samples and urlsplit(self._target).path.endswith(VLLM):
            with ThreadPoolExecutor(min(self.batch_size, len(samples))) as pool:
                return checked(list(pool.map(self._of_vllm, samples)), len(samples), self.name)
        scores: list[float] = []
        for start in range(0, len(samples), self.batch_size):
            batch = samples[start : start + self.batch_size]
            answer = self._ask(self._payload(batch))
            scores += checked(self._scores(answer, len(batch)), len(batch), self.name)
        return scores

    @cached_property
    def _target(self) -> str:
        """The address with a path: its own, or what the server there answers to."""
        parts = urlsplit(self._url)
        if parts.path.strip("/"):
            return self._url

        def told(path: str) -> Any:
            answer = self._retried(lambda: self._there(self._said(urlunsplit(parts._replace(path=path)), None)))
            return parse_json(answer.content.decode(errors="replace")) if answer.status == 200 else None

        found = told("/health")
        if isinstance(found, dict) and found.get("server") == OURS:
            return urlunsplit(parts._replace(path="/score"))
        found = told("/version")
        if isinstance(found, dict) and found.keys() == {"version"}:
            return urlunsplit(parts._replace(path=VLLM[1]))
        return self._url

    def _of_vllm(self, sample: Sample) -> Any:
        """The score of one reply."""
        answer = self._ask(json.dumps(vllm_request(sample), ensure_ascii=False).encode("utf-8"))
        try:
            (datum,) = json.loads(answer.content)["data"]
            (score,) = datum["probs"] if "probs" in datum else datum["data"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RewardError(
                f'reward {self.name!r}: {self.shown_url} must answer with {{"data": [{{"probs": [a number]}}]}} or '
                f'{{"data": [{{"data": [a number]}}]}}, it gave {_quoted(answer)}'
            ) from None
        return score

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

    def _scores(self, answer: http.Answer, count: int) -> list[Any]:
        try:
            scores = json.loads(answer.content)["scores"]
        except (ValueError, KeyError, TypeError, RecursionError):
            scores = None
        if not isinstance(scores, list) or any(isinstance(s, bool | str | list | dict) for s in scores):
            raise RewardError(
                f'reward {self.name!r}: {self.shown_url} must answer with {{"scores": [{count} numbers]}}, '
                f"it gave {_quoted(answer)}"
            )
        return scores

    def _ask(self, body: bytes) -> http.Answer:
        return self._retried(lambda: self._usable(self._said(self._target, body)))

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
                f"reward {self.name!r}: {self.shown_url} {failure} (attempt {self.attempts} of {self.attempts})"
            ) from None

    def _tell(self, failure: Exception, number: int, pause: float) -> None:
        logger.warning(
            "reward %r: %s %s (attempt %d of %d), once more in %.1f s",
            *(self.name, self.shown_url, failure, number, self.attempts, pause),
        )

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise RewardUnavailableError(
                f"reward {self.name!r}: the environment variable {self.api_key_env} must hold the key of "
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
            raise RewardUnavailableError(f"reward {self.name!r}: {self.shown_url} {error}") from None
        except http.NoAnswer as error:
            kind = RewardUnavailableError if isinstance(error, http.Unreachable) else RewardError
            raise TryAgain(str(error), kind) from None

    def _there(self, answer: http.Answer) -> http.Answer:
        if answer.status in AGAIN:
            kind = RewardUnavailableError if answer.status in UNAVAILABLE else RewardError
            raise TryAgain(f"answered with status {answer.status} {answer.reason}: {_quoted(answer)}", kind)
        return answer

    def _usable(self, answer: http.Answer) -> http.Answer:
        if self._there(answer).status != 200:
            kind = RewardUnavailableError if answer.status in UNAVAILABLE else RewardError
            said = f"answered with status {answer.status} {answer.reason}, which is not tried again"
            raise kind(f"reward {self.name!r}: {self.shown_url} {said}: {_quoted(answer)}")
        if len(answer.content) > LARGEST:
            raise RewardError(f"reward {self.name!r}: the answer of {self.shown_url} is over {LARGEST} bytes")
        return answer


def vllm_request(sample: Sample) -> dict[str, Any]:
    """vLLM's `PoolingChatRequest`, which is its `ClassificationChatRequest` too."""
    turns = [{"role": turn.role, "content": turn.content} for turn in sample.prompt]
    return {"messages": [*turns, {"role": "assistant", "content": sample.completion}], "use_activation": False}


def _quoted(answer: http.Answer) -> str:
    """The beginning of what was answered; more of the sentence in an error as vLLM, OpenAI and our server write it."""
    said = parse_json(answer.said)
    error = said.get("error") if isinstance(said, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return repr(shortened(message, 200) if isinstance(message, str) else shortened(answer.said))
