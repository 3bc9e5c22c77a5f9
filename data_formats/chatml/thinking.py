"""Reasoning that stands in the reply's own text: taken out of it, and put into it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from data_formats.chatml.pieces import END_THINK, THINK
from data_formats.records import Message


def with_reasoning(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The turns, with a `<think>…</think>` block that begins an assistant's content moved to `reasoning`.

    White space around the block goes, as in Qwen3's chat template. Elsewhere the marks stay text.
    """
    return tuple(_split(message) for message in messages)


def reply_text(reply: Message) -> str:
    """A reply as one text: what was thought stands before it in the block that `with_reasoning` takes out again."""
    if not reply.reasoning:
        return reply.content
    thought = reply.reasoning.strip("\n")
    return f"{THINK}\n{thought}\n{END_THINK}\n\n" + reply.content.lstrip("\n")


def _split(message: Message) -> Message:
    if message.role != "assistant" or message.reasoning or END_THINK not in message.content:
        return message
    content = message.content.lstrip()
    if not content.startswith(THINK):
        return message
    reasoning, _, rest = content.removeprefix(THINK).partition(END_THINK)
    return replace(message, content=rest.lstrip("\n"), reasoning=reasoning.strip("\n"))
