"""Conversations written as one text: "\\n\\nHuman: …\\n\\nAssistant: …" (HH, Bai et al. 2022) and its relatives.

A text is a transcript only where it cannot well be anything else: it begins with the user's label and either has a
blank line before every label, as HH writes them, or ends with the assistant's label and nothing after it.
"""

from __future__ import annotations

import re
from typing import Any

from data_formats.records import Message

_SPEAKERS = (("Human", "Assistant"), ("User", "Assistant"), ("USER", "ASSISTANT"), ("### Human", "### Assistant"))


def _patterns(user: str, assistant: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Labels after blank lines, and labels after any line end."""
    labels = f"({user}|{assistant}):"
    return re.compile(rf"(?:\A\s*|\n\n){labels}"), re.compile(rf"(?:\A\s*|\n){labels}")


_PATTERNS = tuple((user, *_patterns(user, assistant)) for user, assistant in _SPEAKERS)
_HH = _PATTERNS[0][1]
_MARKED = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")


def starts_as_transcript(text: str) -> bool:
    """Whether a text begins with a speaker of HH, whoever it is."""
    return _HH.match(text) is not None


def _split(text: str, pattern: re.Pattern[str], user: str) -> tuple[Message, ...]:
    """Turns without outer white space; none where something stands before the first label."""
    parts = pattern.split(text)
    if len(parts) < 3 or parts[0].strip():
        return ()
    roles = ("user" if who == user else "assistant" for who in parts[1::2])
    return tuple(Message(role, said.strip()) for role, said in zip(roles, parts[2::2], strict=True))


def hh(text: str) -> tuple[Message, ...]:
    """The turns of what is known to be an HH transcript; none where it is not."""
    return _split(text, _HH, "Human")


def _parted(text: str) -> tuple[Message, ...] | None:
    """The turns of a text that HelpSteer 2 parts by its marks, user first; None where it has none of them."""
    first, *others = _MARKED.split(text)
    if not others:
        return None
    pairs = zip(others[0::2], others[1::2], strict=True)
    turns = [Message("user" if who == "User" else "assistant", said) for who, said in pairs]
    return (Message("user", first), *turns) if first.strip() else tuple(turns)


def transcript(text: str) -> tuple[Message, ...] | None:
    """The turns of a text that is a transcript beyond doubt, else None."""
    if (turns := _parted(text)) is not None:
        return turns
    for user, blank_lines, line_ends in _PATTERNS:
        if not text.lstrip().startswith(f"{user}:"):
            continue
        turns = _split(text, blank_lines, user)
        if any(turn.role == "assistant" for turn in turns) or (turns and text.startswith("\n\n")):
            return turns
        turns = _split(text, line_ends, user)
        if len(turns) > 1 and turns[-1].role == "assistant" and not turns[-1].content:
            return turns
    return None


def reply_after(prompt: Any, reply: str) -> str:
    """A reply beside its prompt as a row gives them: a transcript's labels are followed by a blank that is no text."""
    return reply.strip() if isinstance(prompt, str) and transcript(prompt) else reply
