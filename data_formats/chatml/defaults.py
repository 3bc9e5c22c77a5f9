"""The system turn that a tokenizer's chat template adds to a conversation without one."""

from __future__ import annotations

from typing import Any

from data_formats.chatml.served import template_system_turn
from data_formats.errors import DataError
from data_formats.records import Message


def default_system_turn(tokenizer: Any) -> Message | None:
    """What the template puts before a lone user turn, found by rendering one; None where it adds nothing.

    Qwen 1.5 and 2 say "You are a helpful assistant.", Qwen 2.5 more, Qwen 3 nothing.

    Raises:
        DataError: the tokenizer has no chat template.
        TemplateError: it fails, or writes no ChatML.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "the tokenizer has no chat template to take a default system turn from: set default_system to none",
            field="default_system",
        )
    return template_system_turn(tokenizer)


def with_system(messages: tuple[Message, ...], system: Message | None) -> tuple[Message, ...]:
    """The turns with `system` before them, where they have no system turn of their own."""
    return messages if system is None or (messages[:1] and messages[0].role == "system") else (system, *messages)
