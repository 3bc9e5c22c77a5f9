"""A language model as judge, behind an OpenAI-compatible endpoint: asked about each pair in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward.judges.protocol import Judgment, ReplyPair


@dataclass(slots=True)
class Usage:
    """What was asked so far, by this process.

    Attributes:
        requests: answers that came over the network; `cached`: that were on the disk.
        prompt_tokens, completion_tokens: as the endpoint counts them, of the former alone.
        unread: answers without a verdict; `refused`: requests that the endpoint would not take.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unread: int = 0
    refused: int = 0


class LLMJudge:
    """Both orders are asked; where they disagree it is a tie, and where one of them gave no verdict there is none.

    Args:
        url: the endpoint, up to `/v1` or with `/chat/completions`; https, or http on a loopback address.
        model: what the endpoint calls the model.
        rubric: a text file with what makes a reply better, in place of ours.
        api_key_env: the environment variable with the key.
        cache: a file of JSON lines to which every answer is added as it comes, and where it is looked up; None: none
            is kept.
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
        ValueError: an address that is none, holds a user name or password, or is plain http to another machine.
        MissingFileError: no such rubric.
    """

    usage: Usage

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
        attempts: int = 8,
        backoff: float = 1.0,
        insecure: bool = False,
        name: str = "llm",
        described: str = "",
    ):
        raise NotImplementedError

    def compare(self, pairs: Sequence[ReplyPair]) -> list[list[Judgment]]:
        """One judgment a pair.

        Raises:
            RewardError: the endpoint is not to be had (wrong key, no such model, no connection after all attempts), or
                refuses more than a quarter of the requests. Answers that came are in the cache.
        """
        raise NotImplementedError
