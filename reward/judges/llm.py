"""A language model as judge, behind an OpenAI-compatible endpoint: asked about each pair in both orders.

    POST URL/chat/completions   {"model": …, "messages": […], "temperature": 0, "seed": …, "max_tokens": …}
    200                         {"choices": [{"message": {"content": "… [[A]]"}, …}], "usage": {…}}

A model may prefer what it reads first. So a reply wins only where both orders say so, and where they disagree it is a
tie, which is counted. Every answer is kept as it comes (`reward.judges.answers`): whatever stops a run, the next one
asks only what is missing. What fails is tried again or told as `reward.asking` says.
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
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from align.runtime.errors import MissingFileError
from align.runtime.http import Answer
from align.runtime.json_files import RunFileError, number, parse_json, read_text
from align.runtime.paths import typed_path
from align.runtime.secrets import hide
from align.runtime.terminal import shortened
from reward.asking import Endpoint
from reward.judges.answers import Answers, KeptAnswer
from reward.judges.protocol import ALIKE, Judgment, ReplyPair, Winner
from reward.judges.question import RUBRIC, JudgeQuestion
from reward.protocol import RewardError, RewardUnavailableError

logger = logging.getLogger(__name__)

MAX_TOKENS = 1024  # of an answer, where `parameters` say nothing
MAX_REFUSED_SHARE = 0.25  # of the questions of one call
NOTE = 300  # characters of an answer that a judgment quotes
SHOWN = 100  # answers after which the log says how many there are
PATH = "/chat/completions"
OWN = frozenset({"model", "messages", "stream", "n"})  # fields of the request that nobody else sets
_THERE: dict[str, Winner] = {"A": "first", "B": "second", "tie": "tie"}
_BACK: dict[str, Winner] = {"A": "second", "B": "first", "tie": "tie"}


@dataclass(slots=True)
class Usage:
    """What was asked so far of this judge.

    Attributes:
        requests: answers that came over the network; `cached`: that were kept from before.
        prompt_tokens, completion_tokens: of both, as the endpoint counts them.
        unread: answers without a verdict; `refused`: questions that the endpoint would not answer.
        disagreed: pairs on which the two orders disagree.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unread: int = 0
    refused: int = 0
    disagreed: int = 0


class LLMJudge:
    """Both orders are asked; where they disagree it is a tie, and where one of them gave no verdict there is none.

    Args:
        url: the endpoint, up to `/v1` or with `/chat/completions`; https, or http on a loopback address.
        model: what the endpoint calls the model.
        rubric: a text file with what makes a reply better, in place of `reward.judges.question.RUBRIC`.
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
        name: under which figures stand; default: `llm`.
        described: what follows "judged by"; default: "the language model MODEL".

    Attributes:
        usage: what was asked so far, for reports.

    Raises:
        ValueError: an address that is none, holds a user name or password, or is plain http to another machine; a
            parameter that is the judge's own.
        MissingFileError, RunFileError: no such rubric, or one that holds no text.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        rubric: str | Path | None = None,
        api_key_env: str | None = None,
        cache: str | Path | None = None,
        seed: int = 0,
        parameters: dict[str, Any] | None = None,
        at_once: int = 8,
        timeout: float = 120.0,
        attempts: int = 6,
        backoff: float = 1.0,
        insecure: bool = False,
        name: str = "llm",
        described: str = "",
    ):
        self.name, self.described = name, described or f"the language model {model}"
        self.at_once, self.usage = at_once, Usage()
        self._endpoint = Endpoint(
            f"judge {name!r}",
            completions_url(url),
            timeout=timeout,
            attempts=attempts,
            backoff=backoff,
            api_key_env=api_key_env,
            insecure=insecure,
        )
        if taken := sorted(OWN & (parameters or {}).keys()):
            raise ValueError(f"judge {name!r}: the parameter {taken[0]} is the judge's own; leave it out")
        given = {"temperature": 0, "seed": seed, "max_tokens": MAX_TOKENS} | (parameters or {})
        try:
            json.dumps(parameters, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"judge {name!r}: the parameters cannot be sent as JSON ({error})") from None
        self._asked_at = urlunsplit(urlsplit(completions_url(url))._replace(query="", fragment=""))  # it may hold a key
        self._options = {"model": model} | {key: value for key, value in given.items() if value is not None}
        self._rubric = RUBRIC if rubric is None else _rubric_in(rubric, name)
        self._answers, self._lock = Answers(None if cache is None else typed_path(cache)), threading.Lock()

    def compare(self, pairs: Sequence[ReplyPair]) -> list[list[Judgment]]:
        """One judgment a pair.

        Raises:
            RewardError: the endpoint is not to be had (wrong key, no such model, no connection after all attempts), or
                refuses more than a quarter of the questions. Answers that came are kept.
        """
        asked = [None if pair.alike else self._both_orders(pair) for pair in pairs]
        questions = {question.key: question for both in asked if both for question in both}
        missing = [question for key, question in questions.items() if self._answers.get(key) is None]
        self.usage.cached += len(questions) - len(missing)
        refused = self._ask(missing)
        answers = [self._answers.get(key) for key in questions if key not in refused]
        self.usage.prompt_tokens += sum(answer.prompt_tokens for answer in answers)
        self.usage.completion_tokens += sum(answer.completion_tokens for answer in answers)
        return [[ALIKE if both is None else self._judgment(*both, refused)] for both in asked]

    def _both_orders(self, pair: ReplyPair) -> tuple[JudgeQuestion, JudgeQuestion]:
        orders = ((pair.first, pair.second), (pair.second, pair.first))
        there, back = (JudgeQuestion.of(*order, self._rubric, self._options, self._asked_at) for order in orders)
        return there, back

    def _ask(self, questions: Sequence[JudgeQuestion]) -> dict[str, str]:
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
                        logger.info("judge %r: %d of %d answers", self.name, answered, len(questions))
            except RewardError as error:
                pool.shutdown(cancel_futures=True)  # what is under way is paid for, and kept
                raise type(error)(f"{error}{self._kept()}") from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        return refused

    def _kept(self) -> str:
        path = self._answers.path
        number = self.usage.requests
        return f"; {number} answers are kept in {path}, where the next run goes on" if path and number else ""

    def _answer(self, question: JudgeQuestion) -> None:
        """Asks one question and keeps what is answered."""
        answer = self._endpoint.ask(question.body)
        kept = _kept_of(answer)
        if kept is None:
            raise self._endpoint.unusable(answer, '{"choices": [{"message": {"content": "..."}}]}')
        self._answers.add(question.key, kept)
        with self._lock:
            self.usage.requests += 1

    def _judgment(self, there: JudgeQuestion, back: JudgeQuestion, refused: dict[str, str]) -> Judgment:
        if problem := refused.get(there.key) or refused.get(back.key):
            return Judgment(None, note=problem)
        answers = [self._answers.get(question.key) for question in (there, back)]
        said = [
            None if answer.ended == "length" else question.verdict(answer.text)
            for question, answer in zip((there, back), answers, strict=True)
        ]
        self.usage.unread += said.count(None)
        for verdict, answer in zip(said, answers, strict=True):
            if verdict is None:
                what = "was cut at its limit of tokens" if answer.ended == "length" else "holds no verdict"
                return Judgment(None, note=f"the answer {what}: {shortened(answer.text, NOTE) or 'it is empty'}")
        first, second = _THERE[said[0]], _BACK[said[1]]
        if first == second:
            return Judgment(first, note=shortened(answers[0].text, NOTE))
        self.usage.disagreed += 1
        return Judgment("tie", note=f"{first} when asked in this order, {second} when asked in the other")


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


def _rubric_in(file: str | Path, name: str) -> str:
    path = typed_path(file)
    if not path.is_file():
        raise MissingFileError(f"judge {name!r}: no such rubric {path}")
    text = read_text(path)
    if not text.strip():
        raise RunFileError(
            f"judge {name!r}: the rubric {path} is empty; write what makes a reply better, or leave it out"
        )
    return text
