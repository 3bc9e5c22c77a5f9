"""Whether what is trained is what the tokenizer's chat template serves.

Whoever serves a model renders the template and encodes the whole string; training encodes the pieces of a turn one by
one. A few conversations are encoded both ways. (A content that begins with a newline is not among them: training keeps
the border between it and the role line, as the model does when it generates. Nor is one that begins with a blank, where
the tokenizer has tokens of a newline and blanks behind it, as SmolLM's and GPT-2's.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data_formats.chatml.defaults import with_system
from data_formats.chatml.encoding import encode
from data_formats.chatml.plain import plain_tokenizer
from data_formats.chatml.rendering import render
from data_formats.chatml.served import render_template, template_system_turn
from data_formats.records import Message, ToolCall

_SYSTEM = Message("system", "Be brief: 1 line.")
_ASKED = Message("user", "  Say  12 things,\n\n\tin 3 lines:\né 你好 don't ")
_TALK = (_ASKED, Message("assistant", "One, two.\n- three "), Message("user", "And?"))
_TOOL = '{"type": "function", "function": {"name": "add", "parameters": {"a": 1}}}'
_CALL = Message("assistant", "", tool_calls=(ToolCall("add", '{"a": [1, 2]}'),))
CONVERSATIONS: dict[str, tuple[Message, ...]] = {
    "one question": (_ASKED,),
    "a system turn": (_SYSTEM, _ASKED),
    "several turns": _TALK,
    "a system turn and several turns": (_SYSTEM, *_TALK),
}
WITH_TOOLS: dict[str, tuple[Message, ...]] = {
    "tools": (_SYSTEM, _ASKED),
    "tools, a call and its answer": (_SYSTEM, _ASKED, _CALL, Message("tool", "3")),
}


def template_difference(tokenizer: Any, *, tools: bool = False) -> str | None:
    """Where the conversations part, in words; None: they are the same, token by token.

    Each ends with the opening of the assistant's turn, as it is served; one without a system turn is trained with the
    template's own.

    Args:
        tools: of conversations with tools on offer, and called.

    Raises:
        TemplateError: the template fails.
    """
    system, joins = template_system_turn(tokenizer), _joins_blanks(tokenizer)
    for name, turns in (WITH_TOOLS if tools else CONVERSATIONS).items():
        turns = [replace(turn, content=turn.content.lstrip()) for turn in turns] if joins else turns
        offered = (_TOOL,) if tools else ()
        pieces = render(with_system(turns, system), tools=offered, add_generation_prompt=True)
        text = render_template(
            tokenizer,
            [as_dict(turn) for turn in turns],
            tools=[json.loads(tool) for tool in offered] or None,
            add_generation_prompt=True,
        )
        trained, served = encode(tokenizer, pieces)[0], tokenizer(text, add_special_tokens=False)["input_ids"]
        if trained != served:
            texts = (tokenizer.convert_ids_to_tokens(ids) for ids in (trained, served))
            return f"of a conversation with {name} it serves {parted(*texts)}"
    return None


def _joins_blanks(tokenizer: Any) -> bool:
    """Whether a newline and the blanks behind it are one token, so that the border between them is lost."""
    backend = plain_tokenizer(tokenizer).backend
    whole, newline, rest = (backend.encode(text).ids for text in ("\n  Say", "\n", "  Say"))
    return whole != newline + rest


def as_dict(turn: Message) -> dict[str, Any]:
    """A turn as `apply_chat_template` takes it."""
    found: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        calls = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in turn.tool_calls]
        found["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return found


def parted(trained: Sequence[str], served: Sequence[str]) -> str:
    """Where two rows of tokens part, in words."""
    pairs = enumerate(zip(trained, served, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(trained), len(served)))
    shown = [" ".join(tokens[max(at - 2, 0) : at + 4]) or "nothing" for tokens in (served, trained)]
    return f"{shown[0]!r} where {shown[1]!r} is trained (token {at + 1})"
