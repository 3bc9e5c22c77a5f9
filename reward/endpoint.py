"""A reward behind an HTTP address: batches of replies go there as JSON, scores come back.

    POST URL  {"inputs": [{"prompt": [{"role": "user", "content": "…"}], "completion": "…", "columns": {…}}, …]}
    200       {"scores": [0.7, …]}        one finite number an input, in order

An address that ends with `/pooling` or `/classify` is asked as vLLM's pooling models are, a request a reply, several at
once, without the sigmoid that is their default; one without a path is asked once what it is, by `/health` and
`/version`: `align serve-reward`, whose `/score` is then asked, vLLM, whose `/classify` is, or any other, which is asked
itself.

What fails is tried again or told as `reward.asking` says, which keeps the key out of everything that is written; an
answer that is not the JSON above is an error at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from align.runtime import http
from align.runtime.json_files import parse_json
from reward.asking import Endpoint
from reward.protocol import RewardError, Sample
from reward.scoring import checked

VLLM = ("/pooling", "/classify")  # where its pooling models are asked
OURS = "align serve-reward"  # what its `/health` calls itself


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
        self.name, self.batch_size = name, batch_size
        self._endpoint = Endpoint(
            f"reward {name!r}",
            url,
            timeout=timeout,
            attempts=attempts,
            backoff=backoff,
            longest_backoff=longest_backoff,
            api_key_env=api_key_env,
            insecure=insecure,
        )

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
            answer = self._endpoint.ask(self._payload(batch), self._target)
            scores += checked(self._scores(answer, len(batch)), len(batch), self.name)
        return scores

    @cached_property
    def _target(self) -> str:
        """The address with a path: its own, or what the server there answers to."""
        url = self._endpoint.url
        parts = urlsplit(url)
        if parts.path.strip("/"):
            return url

        def told(path: str) -> Any:
            answer = self._endpoint.look_up(urlunsplit(parts._replace(path=path)))
            return parse_json(answer.content.decode(errors="replace")) if answer.status == 200 else None

        found = told("/health")
        if isinstance(found, dict) and found.get("server") == OURS:
            return urlunsplit(parts._replace(path="/score"))
        found = told("/version")
        if isinstance(found, dict) and found.keys() == {"version"}:
            return urlunsplit(parts._replace(path=VLLM[1]))
        return url

    def _of_vllm(self, sample: Sample) -> Any:
        """The score of one reply."""
        body = json.dumps(vllm_request(sample), ensure_ascii=False).encode("utf-8")
        answer = self._endpoint.ask(body, self._target)
        try:
            (datum,) = json.loads(answer.content)["data"]
            (score,) = datum["probs"] if "probs" in datum else datum["data"]
        except (ValueError, KeyError, TypeError, RecursionError):
            expected = '{"data": [{"probs": [a number]}]} or {"data": [{"data": [a number]}]}'
            raise self._endpoint.unusable(answer, expected) from None
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
            raise self._endpoint.unusable(answer, f'{{"scores": [{count} numbers]}}')
        return scores


def vllm_request(sample: Sample) -> dict[str, Any]:
    """vLLM's `PoolingChatRequest`, which is its `ClassificationChatRequest` too."""
    turns = [{"role": turn.role, "content": turn.content} for turn in sample.prompt]
    return {"messages": [*turns, {"role": "assistant", "content": sample.completion}], "use_activation": False}
