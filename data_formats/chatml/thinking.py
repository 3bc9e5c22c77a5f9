"""Reasoning that a data set has written into the reply itself."""

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


def _split(message: Message) -> Message:
    if message.role != "assistant" or message.reasoning or END_THINK not in message.content:
        return message
    content = message.content.lstrip()
    if not content.startswith(THINK):
        return message
    reasoning, _, rest = content.removeprefix(THINK).partition(END_THINK)
    return replace(message, content=rest.lstrip("\n"), reasoning=reasoning.strip("\n"))
