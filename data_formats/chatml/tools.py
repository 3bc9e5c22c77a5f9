"""Tools in Qwen's format (Qwen2.5, Qwen3): offered in the system turn, called in `<tool_call>`, answered in
`<tool_response>` inside a user turn. The words are the templates' own, so that ids are equal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from data_formats.chatml.pieces import END_TOOL_CALL, END_TOOL_RESPONSE, TOOL_CALL, TOOL_RESPONSE, Piece
from data_formats.records import Message, ToolCall

OFFER = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
HOW = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
XML_TAGS = " XML tags:\n"
EXAMPLE = '\n{"name": <function-name>, "arguments": <args-json-object>}\n'


def as_template_writes(text: str) -> str:
    """JSON text as the templates' `tojson` writes it (", " and ": ", letters unescaped); other text as it is."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def offer(system: str, tools: Sequence[str], turn: int) -> Iterator[Piece]:
    """The content of a system turn that offers `tools` below its own text."""
    listed = "".join(f"\n{as_template_writes(tool)}" for tool in tools)
    yield _text((f"{system}\n\n" if system else "") + OFFER + listed + HOW, turn)
    yield Piece(TOOL_CALL, True, turn)
    yield Piece(END_TOOL_CALL, True, turn)
    yield _text(XML_TAGS, turn)
    yield Piece(TOOL_CALL, True, turn)
    yield _text(EXAMPLE, turn)
    yield Piece(END_TOOL_CALL, True, turn)


def calls(message: Message, turn: int) -> Iterator[Piece]:
    """What follows the content of an assistant turn that calls tools."""
    for number, call in enumerate(message.tool_calls):
        if number or message.content:
            yield _text("\n", turn)
        yield Piece(TOOL_CALL, True, turn)
        yield _text(f"\n{_call(call)}\n", turn)
        yield Piece(END_TOOL_CALL, True, turn)


def _call(call: ToolCall) -> str:
    return f'{{"name": "{call.name}", "arguments": {as_template_writes(call.arguments)}}}'


def answers(observations: Iterable[Message], own: int, marks: int) -> Iterator[Piece]:
    """The content of the user turn that holds the answers of tools.

    Args:
        own: `Piece.turn` of what the tools said.
        marks: of what stands around it.
    """
    for number, message in enumerate(observations):
        if number:
            yield _text("\n", marks)
        yield Piece(TOOL_RESPONSE, True, marks)
        yield _text(f"\n{message.content}\n", own)
        yield Piece(END_TOOL_RESPONSE, True, marks)


def _text(text: str, turn: int) -> Piece:
    return Piece(text, False, turn, True)
