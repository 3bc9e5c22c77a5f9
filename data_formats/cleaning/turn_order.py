"""Conversations that cannot be trained on as they stand: roles out of order, replies without text, control tokens.

The readers repair or refuse most of this in files; these steps are for records from elsewhere, and for control tokens,
which no reader touches because rendering keeps them text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from data_formats.cleaning.steps import Finding
from data_formats.cleaning.texts import content_strings, turns
from data_formats.records import Comparison, Demonstration, Document, Message, Record, Scored

_CONTROL = re.compile(r"<\|[A-Za-z][A-Za-z0-9_]*\|>|</?(?:tool_call|tool_response|tools|think)>")
# Role -> the roles that may follow it; "" is the beginning.
_NEXT = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def _role_problem(messages: Sequence[Message]) -> tuple[str, str] | None:
    """The first turn out of order: what is wrong, and its text."""
    before, asked = "", False
    for message in messages:
        if message.role not in _NEXT[before]:
            if message.role == before:
                return f"two {before} turns in a row", message.content
            if message.role == "system":
                return "system turn in the middle", message.content
            if not asked:
                return f"{message.role} turn before any user turn", message.content
            return f"{message.role} turn after {before} turn", message.content
        before, asked = message.role, asked or message.role == "user"
    return None


class MismatchedRoles:
    """Turns that do not alternate: [system], then user and assistant in turn; observations follow a reply.

    A demonstration must end with a reply, every other prompt with a user turn or an observation.
    """

    name = "mismatched_roles"
    looks_for = "turns that do not alternate, a reply first, a wrong last turn"

    def check(self, record: Record) -> Finding | None:
        if isinstance(record, Document):
            return None
        messages = turns(record)
        if not any(message.role == "user" for message in messages):
            return Finding("drop", "no user turn", messages[0].content if messages else "")
        problem = _role_problem(messages)
        if problem is not None:
            return Finding("drop", *problem)
        last = messages[-1]
        if isinstance(record, Demonstration):
            return None if last.role == "assistant" else Finding("drop", "ends without a reply", last.content)
        return None if last.role in ("user", "tool") else Finding("drop", "prompt ends with a reply", last.content)


class EmptyReplies:
    """Replies without text (a tool call counts as text), user turns and documents without text.

    Of three or more scored replies the empty ones alone go; of two, one being empty leaves no comparison.
    """

    name = "empty_replies"
    looks_for = "replies, user turns or documents without text"

    def check(self, record: Record) -> Finding | None:
        if isinstance(record, Document):
            return None if record.text.strip() else Finding("drop", "empty document")
        messages = turns(record)
        for message in messages:
            if message.role == "user" and not message.content.strip():
                return Finding("drop", "empty user turn")
        if isinstance(record, Demonstration):
            return self._demonstration(messages)
        if isinstance(record, Comparison):
            for side in ("chosen", "rejected"):
                if not getattr(record, side).strip():
                    return Finding("drop", f"empty {side} reply", messages[-1].content if messages else "")
        return self._scored(record) if isinstance(record, Scored) else None

    def _demonstration(self, messages: Sequence[Message]) -> Finding | None:
        replies = [message for message in messages if message.role == "assistant"]
        asked = messages[0].content if messages else ""
        if not replies:
            return Finding("drop", "no reply", asked)
        empty = any(not reply.content.strip() and not reply.tool_calls for reply in replies)
        return Finding("drop", "empty reply", asked) if empty else None

    def _scored(self, record: Scored) -> Finding | None:
        left = tuple(reply for reply in record.replies if reply.content.strip())
        asked = record.prompt[-1].content if record.prompt else ""
        if len(left) == len(record.replies) and left:
            return None
        if len(left) < 2:
            return Finding("drop", "empty reply" if record.replies else "no reply", asked)
        return Finding("repair", "empty reply removed", asked, replace(record, replies=left))


class ControlTokens:
    """Text that looks like a control token of ChatML, of Qwen's tool format, or `<|…|>` of any other model.

    In a training text they are nearly always another model's transcript or an injection. "keep" counts them only:
    rendering makes them plain characters, so they are harmless where they are meant (text about chat formats).
    """

    name = "control_tokens"
    looks_for = "<|im_start|>, <|im_end|>, <|endoftext|>, <|extra_N|>, tool and think tags in text"

    def __init__(self, action: Literal["drop", "keep"] = "drop"):
        self._action: Literal["drop", "note"] = "drop" if action == "drop" else "note"

    def check(self, record: Record) -> Finding | None:
        for text in content_strings(record):
            if found := _CONTROL.search(text):
                kind = "ChatML or model token" if found[0].startswith("<|") else "tool or think tag"
                return Finding(self._action, kind, text[max(0, found.start() - 20) : found.end() + 20])
        return None
