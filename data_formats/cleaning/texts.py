"""The texts of a record, for steps that do not care what kind of record it is.

A record has a prompt and replies. In a demonstration the replies are the assistant turns and the prompt is every other
turn; a document is one reply without a prompt. The *wanted* replies are those a model is trained towards: rules of
taste look at them alone, since a rejected reply that rambles is what a comparison is for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

from data_formats.records import Comparison, Demonstration, Document, Message, Prompt, Record, Scored

R = TypeVar("R")
LABELS = ("role", "part")  # fields that hold a word of ours


def normalised(text: str) -> str:
    """NFC with every run of white space one blank: what two texts must share to be the same."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def folded(text: str) -> str:
    """NFKC in lower case with every run of white space one blank: what two texts are compared by, roughly."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def turns(record: Record) -> tuple[Message, ...]:
    """The turns of a record: a whole demonstration, else the prompt; none in a document."""
    if isinstance(record, Demonstration | Prompt):
        return record.messages
    return () if isinstance(record, Document) else record.prompt


def prompt_text(record: Record) -> str:
    """The turns the record's replies answer, one a line."""
    skipped = "assistant" if isinstance(record, Demonstration) else None
    return "\n".join(turn.content for turn in turns(record) if turn.role != skipped)


def reply_texts(record: Record) -> tuple[str, ...]:
    """All replies, wanted or not; a prompt has none."""
    if isinstance(record, Demonstration):
        return tuple(turn.content for turn in record.messages if turn.role == "assistant")
    if isinstance(record, Comparison):
        return record.chosen, record.rejected
    if isinstance(record, Scored):
        return tuple(reply.content for reply in record.replies)
    return (record.text,) if isinstance(record, Document) else ()


def wanted_texts(record: Record) -> tuple[str, ...]:
    """The replies a model is trained towards: of a comparison the chosen, of scored replies the best of several.

    A single scored reply is wanted unless its score is 0 or less, an assistant turn unless it has no loss.
    """
    if isinstance(record, Demonstration):
        return tuple(turn.content for turn in record.messages if turn.role == "assistant" and turn.loss)
    if isinstance(record, Comparison):
        return (record.chosen,)
    if not isinstance(record, Scored):
        return reply_texts(record)
    scores = [reply.score or 0.0 for reply in record.replies]
    if len(scores) == 1:
        only = record.replies[0]
        return (only.content,) if only.score is None or only.score > 0 else ()
    return tuple(r.content for r, score in zip(record.replies, scores, strict=True) if score == max(scores))


def whole_text(record: Record) -> str:
    """The prompt and the wanted replies, or, where none is wanted, all of them, one a line: what a record says."""
    replies = wanted_texts(record) or reply_texts(record)
    return "\n".join(text for text in (prompt_text(record), *replies) if text)


@cache
def _texts_of(kind: type) -> tuple[str, ...]:
    """The fields of a record, or of a part of one, that may hold a string."""
    return tuple(field.name for field in fields(kind) if field.name not in LABELS)


def strings(value: Any) -> Iterator[str]:
    """Every string of a record, its category and source too, but no role and no part of a mixture."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from strings(item)
    elif is_dataclass(value):
        for name in _texts_of(type(value)):
            yield from strings(getattr(value, name))


def map_strings(value: R, change: Callable[[str], str]) -> R:
    """The record with every string of `strings` changed."""
    if isinstance(value, str):
        return change(value)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(map_strings(item, change) for item in value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: map_strings(getattr(value, name), change) for name in _texts_of(type(value))})
    return value


# What is read or trained on, by the field that holds it; categories, sources and tags are labels.
CONTENTS = frozenset(
    [
        "content",
        "reasoning",
        "arguments",
        "tools",
        "text",
        "chosen",
        "rejected",
        "chosen_reasoning",
        "rejected_reasoning",
        "reference",
    ]
)


def map_contents(value: R, change: Callable[[str, str], str], field: str = "") -> R:
    """The record with every text in it changed by `change(text, field)`; labels, roles and columns stay.

    `arguments` and `tools` are JSON, which the change must leave JSON.
    """
    if isinstance(value, str):
        return change(value, field) if field in CONTENTS else value  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(map_contents(item, change, field) for item in value)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {own.name: getattr(value, own.name) for own in fields(value)}
        return replace(value, **{name: map_contents(part, change, name) for name, part in parts.items()})
    return value


def content_strings(record: Record, *, of: str = "record") -> Iterator[str]:
    """What makes the record what it is, in a fixed order, roles, tool calls and scores included, labels left out.

    Args:
        record: any record.
        of: "record", or "prompt" to leave its replies out.
    """
    replies_too = of == "record"
    for turn in turns(record):
        if replies_too or turn.role != "assistant" or not isinstance(record, Demonstration):
            yield turn.role if turn.loss else f"{turn.role} without loss"
            yield turn.content
            yield turn.reasoning
            for call in turn.tool_calls:
                yield call.name
                yield call.arguments
    if isinstance(record, Document):
        yield record.text
        return
    yield from record.tools
    if replies_too:
        if isinstance(record, Scored):
            for reply in record.replies:
                yield reply.reasoning
                yield reply.content
                yield repr(reply.score)
                yield from (f"{step.rating!r} {step.text}" for step in reply.steps)
                yield from (f"{name} {rating!r}" for name, rating in reply.attributes)
        elif isinstance(record, Comparison):
            yield from (record.chosen_reasoning, record.rejected_reasoning, *reply_texts(record))
            for name, side in (("chosen", record.chosen_turns), ("rejected", record.rejected_turns)):
                yield from (f"{name} {turn.role} {turn.content}" for turn in side)
