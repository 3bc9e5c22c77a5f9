"""A language model behind an OpenAI-compatible endpoint: many questions, each asked once and its answer kept.

    POST URL/chat/completions   {"model": …, "messages": […], "temperature": 0, "seed": …, "max_tokens": …}
    200                         {"choices": [{"message": {"content": …}, …}], "usage": {…}}

Every answer is kept as it comes (`reward.answers`): whatever stops a run, the next one asks only what is missing. What
fails is tried again or told as `reward.asking` says. What is asked, and how an answer is read, is the caller's.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from align.runtime.http import Answer
from align.runtime.json_files import number, parse_json
from align.runtime.paths import typed_path
from align.runtime.secrets import hide
from reward.answers import Answers, KeptAnswer
from reward.asking import Endpoint
from reward.protocol import RewardError, RewardUnavailableError

logger = logging.getLogger(__name__)

MAX_TOKENS = 1024  # of an answer, where `parameters` say nothing
MAX_REFUSED_SHARE = 0.25  # of the questions of one call
SHOWN = 100  # answers after which the log says how many there are
PATH = "/chat/completions"
OWN = frozenset({"model", "messages", "stream", "n"})  # fields of the request that nobody else sets


class ChatRequest(Protocol):
    """One request: its body, and a key that is the same for the same request to the same address."""

    @property
    def key(self) -> str: ...

    @property
    def body(self) -> bytes: ...


@dataclass(slots=True)
class Usage:
    """What was asked so far.

    Attributes:
        requests: answers that came over the network; `cached`: that were kept from before.
        prompt_tokens, completion_tokens: of both, as the endpoint counts them.
        unread: answers of which nothing could be read, which whoever reads them counts.
        refused: questions that the endpoint would not answer.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unread: int = 0
    refused: int = 0


class LanguageModel:
    """Questions go out several at a time; a few may be refused, but not a quarter of them.

    Args:
        called: the subject of errors and logs ("judge 'llm'").
        url: the endpoint, up to `/v1` or with `/chat/completions`; https, or http on a loopback address.
        model: what the endpoint calls the model.
        usage: where what is asked is counted.
        api_key_env: the environment variable with the key.
        cache: a file of JSON lines to which every answer is added as it comes, and where it is looked up; None: they
            are held in memory alone.
        seed: sent along; the temperature is 0.
        parameters: more fields of the request ({"max_tokens": 4096}); one that is None is left out of it.
        at_once: requests at the same time.
        timeout: seconds that one attempt may take.
        attempts: how often a request is made before giving up.
        backoff: seconds before the second attempt; doubles with each. What the endpoint asks for (Retry-After) counts
            where it is longer.
        insecure: allow plain http to other machines.

    Attributes:
        options: the fields of every request beside its messages.
        asked_at: the address without its query, which may hold a key: another address may give another answer.

    Raises:
        ValueError: an address that is none, holds a user name or password, or is plain http to another machine; a
            parameter that is not for others to set, or that is no JSON.
    """

    def __init__(
        self,
        called: str,
        url: str,
        model: str,
        *,
        usage: Usage,
        api_key_env: str | None = None,
        cache: str | Path | None = None,
        seed: int = 0,
        parameters: dict[str, Any] | None = None,
        at_once: int = 8,
        timeout: float = 120.0,
        attempts: int = 6,
        backoff: float = 1.0,
        insecure: bool = False,
    ):
        self.called, self.at_once, self.usage = called, at_once, usage
        self._endpoint = Endpoint(
            called,
            completions_url(url),
            timeout=timeout,
            attempts=attempts,
            backoff=backoff,
            api_key_env=api_key_env,
            insecure=insecure,
        )
        if taken := sorted(OWN & (parameters or {}).keys()):
            raise ValueError(f"{called}: the parameter {taken[0]} is not for others to set; leave it out")
        given = {"temperature": 0, "seed": seed, "max_tokens": MAX_TOKENS} | (parameters or {})
        try:
            json.dumps(parameters, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{called}: the parameters cannot be sent as JSON ({error})") from None
        self.asked_at = urlunsplit(urlsplit(completions_url(url))._replace(query="", fragment=""))
        self.options = {"model": model} | {key: value for key, value in given.items() if value is not None}
        self._answers, self._lock = Answers(None if cache is None else typed_path(cache)), threading.Lock()

    def answers(self, questions: Sequence[ChatRequest]) -> dict[str, KeptAnswer | str]:
        """What was answered to each question, by its key; a text where it was refused, which says why.

        Raises:
            RewardError: the endpoint is not to be had (wrong key, no such model, no connection after all attempts), or
                refuses more than a quarter of the questions. Answers that came are kept.
        """
        asked = {question.key: question for question in questions}
        missing = [question for key, question in asked.items() if self._answers.get(key) is None]
        self.usage.cached += len(asked) - len(missing)
        refused = self._ask(missing)
        found = {key: refused.get(key) or self._answers.get(key) for key in asked}
        kept = [answer for answer in found.values() if isinstance(answer, KeptAnswer)]
        self.usage.prompt_tokens += sum(answer.prompt_tokens for answer in kept)
        self.usage.completion_tokens += sum(answer.completion_tokens for answer in kept)
        return found

    def _ask(self, questions: Sequence[ChatRequest]) -> dict[str, str]:
        """Has every question answered; of those that were refused, why, by key."""
        refused: dict[str, str] = {}
        most = max(2, math.ceil(MAX_REFUSED_SHARE * len(questions)))
        with ThreadPoolExecutor(self.at_once) as pool:
            futures = {pool.submit(self._answer, question): question for question in questions}
            try:
                for answered, done in enumerate(as_completed(futures), start=1):
                    problem = done.exception()
                    if isinstance(problem, RewardError) and not isinstance(problem, RewardUnavailableError):
                        refused[futures[done].key] = str(problem)
                        self.usage.refused += 1
                    if problem is not None and (futures[done].key not in refused or len(refused) > most):
                        raise problem
                    if answered % SHOWN == 0:
                        logger.info("%s: %d of %d answers", self.called, answered, len(questions))
            except RewardError as error:
                pool.shutdown(cancel_futures=True)  # what is under way is paid for, and kept
                raise type(error)(f"{error}{self._kept()}") from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        return refused

    def _kept(self) -> str:
        path = self._answers.path
        count = self.usage.requests
        return f"; {count} answers are kept in {path}, where the next run goes on" if path and count else ""

    def _answer(self, question: ChatRequest) -> None:
        """Asks one question and keeps what is answered."""
        answer = self._endpoint.ask(question.body)
        kept = _kept_of(answer)
        if kept is None:
            raise self._endpoint.unusable(answer, '{"choices": [{"message": {"content": "..."}}]}')
        self._answers.add(question.key, kept)
        with self._lock:
            self.usage.requests += 1


def completions_url(url: str) -> str:
    """Where an endpoint is asked for a reply: `URL/chat/completions`, below `/v1` where the address has no path."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # which is refused as it is
    path = parts.path.rstrip("/")
    return url if path.endswith(PATH) else urlunsplit(parts._replace(path=(path or "/v1") + PATH))


def _kept_of(answer: Answer) -> KeptAnswer | None:
    """What is kept of an answer, without secrets; None where it is not of the endpoint's shape."""
    said = parse_json(answer.content.decode("utf-8", errors="replace"))
    try:
        choice = said["choices"][0]
        content = choice["message"].get("content") or ""  # some leave it out beside a reasoning that was cut
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        return None
    counted = said.get("usage") if isinstance(said.get("usage"), dict) else {}
    tokens = [int(number(counted.get(name)) or 0) for name in ("prompt_tokens", "completion_tokens")]
    return KeptAnswer(hide(content, answer.secrets), str(choice.get("finish_reason") or ""), *tokens)
