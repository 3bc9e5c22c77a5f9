"""Formats of MOSS: `chat` with a turn's parts under names, and the older `plain_text`.

A plugin's command, `Search("x")`, becomes a call of it with its argument as {"input": "x"}, which MOSS does not name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from data_formats.context import with_system
from data_formats.demonstrations import demonstration_of, is_unclaimed
from data_formats.errors import DataError
from data_formats.fields import Fields
from data_formats.formats import Dropped, Format, Notes, optional_text, shown, text_field
from data_formats.prompts import prompt_of, up_to_last_user_turn
from data_formats.records import Demonstration, Message, Prompt, ToolCall
from data_formats.tools import json_text
from data_formats.turns import Turns

_MARK = re.compile(r"\A\s*<\|[^|>]*\|>:?\s*|\s*<eo[a-z]>\s*\Z")
_SPEAKER = re.compile(r"\[(Human|MOSS)\]:")
_END = re.compile(r"\s*<eo[ahm]>\s*\Z")
_COMMAND = re.compile(r"\s*(\w+)\((.*?)\)\s*(?:,|\Z)", re.DOTALL)
_TURN = re.compile(r"turn_(\d+)")


def _part(turn: Fields, name: str, notes: Notes) -> str:
    """A part without its marks (`<|MOSS|>: … <eom>`); "None" says that there is none."""
    text = _MARK.sub("", _MARK.sub("", optional_text(turn, name, notes)))
    return "" if text == "None" else text


def _calls(text: str, field: str, notes: Notes) -> tuple[ToolCall, ...]:
    found = _COMMAND.findall(text)
    if text and not found:
        raise DataError(f'expected commands such as Search("…"), found {shown(text)}', field=field)
    arguments = [{"input": given.strip().strip("\"'")} if given.strip() else {} for _, given in found]
    return tuple(
        ToolCall(name, json_text(given, field, notes)) for (name, _), given in zip(found, arguments, strict=True)
    )


def _turn(raw: Any, field: str, notes: Notes) -> Turns:
    """What the user says, what MOSS thinks and calls, what the tools answer, and what it says then."""
    if not isinstance(raw, dict):
        raise DataError(f"expected a turn {{Human, MOSS}}, found {shown(raw)}", field=field)
    turn = Fields(raw, field)
    thought, said = _part(turn, "Inner Thoughts", notes), _part(turn, "MOSS", notes)
    calls = _calls(_part(turn, "Commands", notes), f"{field}.Commands", notes)
    answers = _part(turn, "Tool Responses", notes)
    turns = [Message("user", _part(turn, "Human", notes))]
    if calls:
        turns += [Message("assistant", "", thought, calls), Message("tool", answers), Message("assistant", said)]
    else:
        turns += [Message("assistant", said, thought)]
    turn.pass_over(notes)
    return tuple(turns)


def _of_chat(row: dict[str, Any], notes: Notes) -> Turns:
    """`chat`: {turn_1: {Human, Inner Thoughts, Commands, Tool Responses, MOSS}, …}, `meta_instruction` (MOSS 003)."""
    numbered = sorted((int(match[1]), name) for name in row["chat"] if (match := _TURN.fullmatch(str(name))))
    if not numbered:
        raise DataError("expected turn_1, turn_2, …", field="chat")
    turns = sum((_turn(row["chat"][name], f"chat.{name}", notes) for _, name in numbered), ())
    return _system(row, turns, notes)


def _of_text(row: dict[str, Any], notes: Notes) -> Turns:
    """`plain_text`: "[Human]: …<eoh> [MOSS]: …<eoa>" (MOSS 002)."""
    parts = _SPEAKER.split(text_field(row, "plain_text", notes))
    if len(parts) < 3:
        raise Dropped("no turn with text")
    head = parts[0].strip()
    roles = {"Human": "user", "MOSS": "assistant"}
    turns = tuple(
        Message(roles[who], _END.sub("", said).strip()) for who, said in zip(parts[1::2], parts[2::2], strict=True)
    )
    return _system(row, (Message("system", head), *turns) if head else turns, notes)


def _system(row: dict[str, Any], turns: Turns, notes: Notes) -> Turns:
    """`meta_instruction`, or `prefix` in the older files, as a system turn."""
    row.get("num_turns")
    field = "meta_instruction" if row.get("meta_instruction") else "prefix"
    text = optional_text(row, field, notes).strip()
    return with_system(row, (Message("system", text), *turns) if text else turns, notes)


def parse_demonstration(row: dict[str, Any], notes: Notes, read: Callable[..., Turns]) -> Demonstration:
    """The conversation."""
    return demonstration_of(row, read(row, notes), notes)


def parse_prompt(row: dict[str, Any], notes: Notes, read: Callable[..., Turns]) -> Prompt:
    """The conversation up to its last user turn or tool's answer."""
    messages, reference = up_to_last_user_turn(read(row, notes), notes)
    return prompt_of(row, messages, notes, reference)


_KINDS = ((Demonstration, parse_demonstration), (Prompt, parse_prompt))


def _is_chat(row: dict[str, Any]) -> bool:
    return isinstance(row["chat"], dict) and is_unclaimed(row)


FORMATS = tuple(
    known
    for kind, make in _KINDS
    for known in (
        Format("moss", kind, frozenset({"chat"}), partial(make, read=_of_chat), _is_chat),
        Format("moss_plain", kind, frozenset({"plain_text"}), partial(make, read=_of_text), is_unclaimed),
    )
)
