"""What a reward server is asked, and how it answers: our own shape, and those of vLLM's pooling models.

    POST /score     {"inputs": [ITEM, …]}, or one ITEM    -> {"scores": [0.7, …], "parts": {NAME: [0.7, …], …}}
                    ITEM: {"prompt", "completion"} | {"prompt", "completions": […]} | {"messages"}, and "columns": {…}
    POST /classify  {"messages"} or {"input"}             -> {"data": [{"index", "label", "probs": [0.7], …}], …}
    POST /pooling   the same                              -> {"data": [{"index", "object", "data": [0.7]}], …}

A prompt is a text of the user's or turns {"role", "content"}; `messages` end with the reply; contents are taken as they
are. `parts` are there where a reward is made of several. The fields of `/classify` and `/pooling` are those of vLLM
0.32, whose default it is to give the sigmoid of the score: `use_activation: false` gives the score itself. `input` is
text or token ids, one or several, just as the model reads them; rewards that are one reward model of ours take it.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from align.serving.bodies import RequestError
from data_formats.records import Message
from reward.protocol import Reward, Sample, Verdict

ROLES = ("system", "user", "assistant", "tool")
MOST_REPLIES = 1024  # of a request
UNSUPPORTED = (
    "truncate_prompt_tokens",
    "chat_template",
    "chat_template_kwargs",
    "dimensions",
    "continue_final_message",
)
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks.

    Attributes:
        replies: how many.
        length: characters or tokens of the longest, to put like with like.
        samples: makes them; called in the scoring thread alone, since tokenizers serve one thread at a time.
        answer: of the verdict on them.
    """

    replies: int
    length: int
    samples: Callable[[], list[Sample]]
    answer: Callable[[Verdict, Sequence[Sample]], Body]


def asked_to_score(body: Any, reward: Reward) -> Asked:
    """A request of `/score`. Raises RequestError."""
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    items = body.get("inputs", [body])
    if not isinstance(items, list):
        raise RequestError('"inputs" must be a list')
    samples: list[Sample] = []
    for at, item in enumerate(items):
        where = f"inputs[{at}]" if "inputs" in body else "the body"
        samples += _samples(item, where)
        _bound(len(samples))
    return Asked(len(samples), max(map(_characters, samples), default=0), lambda: samples, _scores)


def asked_as_vllm(body: Any, reward: Reward, name: str, pooling: bool) -> Asked:
    """A request of `/pooling` or `/classify`. Raises RequestError.

    Args:
        name: what the answer calls the model.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    unknown = [field for field in UNSUPPORTED if body.get(field)]
    if unknown or body.get("task") not in (None, "classify") or body.get("encoding_format") not in (None, "float"):
        raise RequestError(f"not supported here: {', '.join(unknown) or 'a task but classify, an encoding but float'}")
    rows_of = getattr(reward, "token_rows", None)

    def as_ids(rows: Sequence[Sequence[int]]) -> list[Sample]:
        return [Sample((), "", prompt_ids=(), completion_ids=tuple(row)) for row in rows]

    if "messages" in body:
        turns = [_as_message(body["messages"], "the body")]
        samples = (lambda: as_ids(rows_of(turns))) if rows_of is not None else (lambda: turns)
        replies, length = 1, _characters(turns[0])
    else:
        given = _inputs(body.get("input"))
        if rows_of is None:
            raise RequestError(f'{name} reads prompt and reply apart: send "messages", or use /score', 422)
        special = body.get("add_special_tokens", True) is True
        samples = lambda: as_ids(_encoded(reward.tokenizer, given, special))  # noqa: E731
        replies, length = len(given), max(map(len, given))

    def answer(verdict: Verdict, samples: Sequence[Sample]) -> Body:
        values = [score if body.get("use_activation") is False else _sigmoid(score) for score in verdict.scores]
        tokens = sum(len(sample.completion_ids or ()) for sample in samples)
        return {
            "id": f"{'pool' if pooling else 'classify'}-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": name,
            "data": [_datum(at, value, pooling) for at, value in enumerate(values)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
        }

    return Asked(replies, length, samples, answer)


def _datum(index: int, value: float, pooling: bool) -> Body:
    if pooling:
        return {"index": index, "object": "pooling", "data": [value]}
    return {"index": index, "label": "LABEL_0", "probs": [value], "num_classes": 1}


def _scores(verdict: Verdict, samples: Sequence[Sample]) -> Body:
    return {"scores": verdict.scores} | ({"parts": verdict.parts} if verdict.parts else {})


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score >= 0 else (low := math.exp(score)) / (1 + low)


def _bound(replies: int) -> None:
    if replies > MOST_REPLIES:
        raise RequestError(f"a request may have {MOST_REPLIES} replies, this one has more: send several", 413)


def _samples(item: Any, where: str) -> list[Sample]:
    if not isinstance(item, dict):
        raise RequestError(f"{where} must be an object")
    columns = item.get("columns") or None
    if columns is not None and not isinstance(columns, dict):
        raise RequestError(f"{where}.columns must be an object")
    if "messages" in item:
        sample = _as_message(item["messages"], where)
        return [Sample(sample.prompt, sample.completion, columns=columns)]
    replies = item.get("completions", [item.get("completion")])
    if not isinstance(replies, list) or not all(isinstance(reply, str) for reply in replies):
        raise RequestError(f'{where} needs "completion", a text, or "completions", a list of them (or "messages")')
    prompt = item.get("prompt")
    turns = (Message("user", prompt),) if isinstance(prompt, str) else _turns(prompt, f"{where}.prompt")
    return [Sample(turns, reply, columns=columns) for reply in replies]


def _as_message(messages: Any, where: str) -> Sample:
    """The turns before the last one as the prompt, and the last one, the assistant's, as the reply."""
    *prompt, reply = _turns(messages, f"{where}.messages")
    if reply.role != "assistant" or not prompt:
        raise RequestError(f"{where}.messages must end with the assistant's reply to a turn before it")
    return Sample(tuple(prompt), reply.content)


def _turns(turns: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise RequestError(f'{where} must be a list of turns {{"role", "content"}}')
    found = []
    for at, turn in enumerate(turns):
        content = turn.get("content") if isinstance(turn, dict) else None
        if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
            content = "".join(str(part["text"]) for part in content)
        if not isinstance(content, str) or turn.get("role") not in ROLES:
            raise RequestError(f"{where}[{at}] must have a text as content and a role of {', '.join(ROLES)}")
        found.append(Message(turn["role"], content))
    return tuple(found)


def _inputs(given: Any) -> list[str] | list[list[int]]:
    """The texts, or the rows of token ids, that `input` holds."""
    many = given if isinstance(given, list) and given and not _is_id(given[0]) else [given]
    for one in many:
        ids = isinstance(one, list) and bool(one) and all(map(_is_id, one))
        if not ids and not (isinstance(one, str) and one):
            raise RequestError('"input" must be a text, token ids, or a list of either (or send "messages")')
    if len({isinstance(one, str) for one in many}) > 1:
        raise RequestError('"input" must not mix texts and token ids')
    _bound(len(many))
    return many


def _encoded(tokenizer: Any, given: list[str] | list[list[int]], special: bool) -> list[list[int]]:
    if isinstance(given[0], str):
        return tokenizer(given, add_special_tokens=special)["input_ids"]
    strange = max(max(row) for row in given)
    if strange >= len(tokenizer):
        raise RequestError(f"token id {strange} is none of the model's {len(tokenizer)}", 422)
    return given


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _characters(sample: Sample) -> int:
    return len(sample.completion) + sum(len(turn.content) for turn in sample.prompt)
