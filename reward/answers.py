"""Questions to an endpoint, each asked once and several at a time, and their answers, kept as they come.

Answers were paid for: each is on the disk, a JSON line by the key of its question, before anything is done with it, so
that whatever stops a run, the next one asks only what is missing. One of which nothing can be read is kept like any
other: the same question has the same answer (its seed goes along), and who wants another one removes the file. What is
refused has no answer, and is asked again by the next run. A process that is killed leaves whole lines and at most a
torn one, which is passed over. What fails is tried again or told as `reward.asking` says.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from align.runtime.files import append_json_lines
from align.runtime.http import Answer
from align.runtime.json_files import number, objects, read_text
from align.runtime.paths import typed_path
from reward.asking import Endpoint
from reward.protocol import RewardError, RewardUnavailableError

logger = logging.getLogger(__name__)

MAX_REFUSED_SHARE = 0.25  # of the questions of one call
SHOWN = 100  # answers after which the log says how many there are


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What an endpoint said to one question.

    Attributes:
        text: empty where it said nothing.
        ended: why it ended, in the endpoint's word: "stop", "length".
        prompt_tokens, completion_tokens: as the endpoint counts them, 0 where it does not.
    """

    text: str
    ended: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answers:
    """Answers by key; several threads may add to them.

    Args:
        path: the file, made when the first answer is added; None: they are held in memory alone.

    Raises:
        RunFileError: the file cannot be read as text.
    """

    def __init__(self, path: Path | None):
        self.path, self._lock = path, threading.Lock()
        self._known: dict[str, KeptAnswer] = {}
        rows, _ = objects(read_text(path)) if path else ([], 0)
        for row in rows:
            if isinstance(row.get("key"), str) and isinstance(row.get("text"), str):
                counts = [int(number(row.get(name)) or 0) for name in ("prompt_tokens", "completion_tokens")]
                self._known[row["key"]] = KeptAnswer(row["text"], str(row.get("ended", "")), *counts)

    def get(self, key: str) -> KeptAnswer | None:
        return self._known.get(key)

    def add(self, key: str, answer: KeptAnswer) -> None:
        """Keeps an answer, on the disk before anything else is done with it. Raises StorageError."""
        with self._lock:
            if self.path is not None:
                append_json_lines(self.path, [{"key": key, **asdict(answer)}])
            self._known[key] = answer


class EndpointQuestion(Protocol):
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


class AskedOnce:
    """An endpoint that is asked each question once; a few may be refused, but not a quarter of them.

    Args:
        called: the subject of errors and logs ("judge 'llm'").
        url: where questions go; https, or http on a loopback address.
        read: what is kept of an answer, without secrets; None where it is not of the endpoint's shape.
        expected: that shape, for errors.
        usage: where what is asked is counted.
        cache: a file of JSON lines to which every answer is added as it comes, and where it is looked up; None: they
            are held in memory alone.
        at_once: requests at the same time.
        endpoint: see `reward.asking.Endpoint` (`timeout`, `attempts`, `backoff`, `api_key_env`, `insecure`).

    Raises:
        ValueError: an address that is none, holds a user name or password, or is plain http to another machine.
    """

    def __init__(
        self,
        called: str,
        url: str,
        read: Callable[[Answer], KeptAnswer | None],
        expected: str,
        *,
        usage: Usage,
        cache: str | Path | None = None,
        at_once: int = 8,
        timeout: float = 120.0,
        attempts: int = 6,
        backoff: float = 1.0,
        **endpoint: Any,
    ):
        self.called, self.at_once, self.usage = called, at_once, usage
        self._read, self._expected = read, expected
        self._endpoint = Endpoint(called, url, timeout=timeout, attempts=attempts, backoff=backoff, **endpoint)
        self._answers, self._lock = Answers(None if cache is None else typed_path(cache)), threading.Lock()

    def answers(self, questions: Sequence[EndpointQuestion]) -> dict[str, KeptAnswer | str]:
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

    def _ask(self, questions: Sequence[EndpointQuestion]) -> dict[str, str]:
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

    def _answer(self, question: EndpointQuestion) -> None:
        """Asks one question and keeps what is answered."""
        answer = self._endpoint.ask(question.body)
        kept = self._read(answer)
        if kept is None:
            raise self._endpoint.unusable(answer, self._expected)
        self._answers.add(question.key, kept)
        with self._lock:
            self.usage.requests += 1
