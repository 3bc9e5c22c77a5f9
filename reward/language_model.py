"""A language model behind an OpenAI-compatible endpoint, each question asked once (`reward.answers`).

    POST URL/chat/completions   {"model": …, "messages": […], "temperature": 0, "seed": …, "max_tokens": …}
    200                         {"choices": [{"message": {"content": …}, …}], "usage": {…}}

What is asked, and how an answer is read, is the caller's.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from align.runtime.http import Answer
from align.runtime.json_files import number, parse_json
from align.runtime.secrets import hide
from reward.answers import AskedOnce, KeptAnswer, Usage

MAX_TOKENS = 1024  # of an answer, where `parameters` say nothing
PATH = "/chat/completions"
OWN = frozenset({"model", "messages", "stream", "n"})  # fields of the request that nobody else sets


class LanguageModel(AskedOnce):
    """Questions are chat completions.

    Args:
        called: the subject of errors and logs ("judge 'llm'").
        url: the endpoint, up to `/v1` or with `/chat/completions`; https, or http on a loopback address.
        model: what the endpoint calls the model.
        usage: where what is asked is counted.
        seed: sent along; the temperature is 0.
        parameters: more fields of the request ({"max_tokens": 4096}); one that is None is left out of it.
        options: see `reward.answers.AskedOnce` (`cache`, `at_once`, `timeout`, `api_key_env`, …).

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
        seed: int = 0,
        parameters: dict[str, Any] | None = None,
        **options: Any,
    ):
        expected = '{"choices": [{"message": {"content": "..."}}]}'
        super().__init__(called, completions_url(url), _kept_of, expected, usage=usage, **options)
        if taken := sorted(OWN & (parameters or {}).keys()):
            raise ValueError(f"{called}: the parameter {taken[0]} is not for others to set; leave it out")
        given = {"temperature": 0, "seed": seed, "max_tokens": MAX_TOKENS} | (parameters or {})
        try:
            json.dumps(parameters, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{called}: the parameters cannot be sent as JSON ({error})") from None
        self.asked_at = urlunsplit(urlsplit(completions_url(url))._replace(query="", fragment=""))
        self.options = {"model": model} | {key: value for key, value in given.items() if value is not None}


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
