"""Raw turns -> messages: role names, content parts, and the repairs that real conversations need.

Every repair is counted in `notes`, every conversation given up raises `Dropped` with its reason. Text is otherwise kept
as it is: control-token look-alikes stay text (see `chatml`), white space stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_formats.errors import DataError
from data_formats.formats import Dropped, Notes, as_text, optional_text, shown
from data_formats.records import Message, ToolCall
from data_formats.tools import read_calls

ROLE_NAMES = {  # whatever their capitals
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "function_response": "tool",
    "environment": "tool",
    "ipython": "tool",
}
CALLS = ("function_call", "tool_call")  # ShareGPT: the whole turn is a call
THOUGHTS = ("reasoning", "thinking")
Turns = tuple[Message, ...]


@dataclass(slots=True)
class _Parts:
    texts: list[str]
    reasoning: list[str]
    calls: tuple[ToolCall, ...] = ()


def _parts(value: Any, field: str, notes: Notes) -> _Parts:
    """A string, or a list of parts: texts are joined without separator, thoughts and calls kept apart."""
    found = _Parts([], [])
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(value, list) or isinstance(part, str):
            found.texts.append(as_text(part, field, notes))
            continue
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind == "text":
            found.texts.append(as_text(part.get("text", part.get("value")), field, notes))
        elif isinstance(kind, str) and kind in THOUGHTS:
            found.reasoning.append(as_text(part.get("value", part.get("text", part.get(kind))), field, notes))
        elif kind in ("tool_call", "tool_calls"):
            found.calls += read_calls(part.get("value", part.get("text", part.get(kind))), field, notes)
        else:
            known = "text, reasoning, thinking and tool_call"
            raise DataError(f"only parts of type {known} are supported, found {shown(kind)}", field=field)
    return found


def read_turn(raw: Any, field: str, notes: Notes) -> Message:
    """One turn, written as {role, content} (OpenAI) or {from, value} (ShareGPT).

    Raises:
        DataError: another shape, an unknown role, a malformed call, or content that is not text.
    """
    if not isinstance(raw, dict):
        raise DataError(f"expected a turn {{role, content}} or {{from, value}}, found {shown(raw)}", field=field)
    role_key, content_key = ("role", "content") if "role" in raw else ("from", "value")
    if role_key not in raw or content_key not in raw:
        found = ", ".join(sorted(map(str, raw))) or "nothing"
        raise DataError(f"expected a turn {{role, content}} or {{from, value}}, found the keys {found}", field=field)
    named = raw[role_key].strip().lower() if isinstance(raw[role_key], str) else None
    role = ROLE_NAMES.get(named)
    if role is None:
        known = ", ".join(ROLE_NAMES)
        raise DataError(f"unknown role {shown(raw[role_key])}; known are {known}", field=f"{field}.{role_key}")
    if role == "assistant" and raw.get("loss_weight", 1) != 1:
        weight = shown(raw["loss_weight"])
        raise DataError(f"assistant turns are trained with weight 1, found {weight}", field=f"{field}.loss_weight")
    at, value, calls = f"{field}.{content_key}", raw[content_key], ()
    if raw.get("tool_calls"):
        calls = read_calls(raw["tool_calls"], f"{field}.tool_calls", notes)
        value = "" if value is None else value
    if named in CALLS:
        return Message(role, "", "", read_calls(value, at, notes))
    parts = _parts(value, at, notes)
    calls = parts.calls + calls
    reasoning = "".join(parts.reasoning) or optional_text(raw, "reasoning_content", notes)
    if role != "assistant" and (calls or reasoning):
        raise DataError(f"only an assistant thinks or calls tools, found it in a turn of the {role}", field=field)
    return Message(role, "".join(parts.texts), reasoning, calls)


def read_turns(raw: Any, field: str, notes: Notes) -> Turns:
    """The turns of a list, unrepaired."""
    if not isinstance(raw, list):
        raise DataError(f"expected a list of turns, found {type(raw).__name__} {shown(raw)}", field=field)
    return tuple(read_turn(turn, f"{field}[{at}]", notes) for at, turn in enumerate(raw))


def _is_empty(turn: Message) -> bool:
    """Whether a turn says nothing; a call without text says something, and a tool may answer with nothing."""
    return turn.role != "tool" and not turn.content.strip() and not turn.tool_calls


def _merged(first: Message, second: Message) -> Message:
    text = "\n\n".join(turn.content for turn in (first, second) if turn.content)
    reasoning = "\n\n".join(turn.reasoning for turn in (first, second) if turn.reasoning)
    return Message(first.role, text, reasoning, first.tool_calls + second.tool_calls)


def repaired(turns: Turns, notes: Notes) -> Turns:
    """A conversation that alternates: an optional system turn, then user, assistant, user, ...

    Empty system turns go; a reply before the first user turn goes; what follows the first empty turn goes with it; two
    turns of one speaker in a row become one, joined by a blank line.

    Raises:
        Dropped: a system turn in the middle, or no user turn with text.
    """
    system = [turn for turn in turns if turn.role == "system" and turn.content.strip()]
    rest = [turn for turn in turns if turn.role != "system"]
    first = next((at for at, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if any(turn.role == "system" for turn in turns[first:]):
        raise Dropped("system turn in the middle")
    if rest and rest[0].role != "user":
        notes["reply before the first user turn removed"] += 1
        while rest and rest[0].role != "user":
            rest.pop(0)
    empty = next((at for at, turn in enumerate(rest) if _is_empty(turn)), None)
    if empty is not None:
        rest = rest[:empty]
        if rest:
            notes["cut at an empty turn"] += 1
    if not rest:
        raise Dropped("no turn with text" if empty is None else "empty turn")
    merged: list[Message] = []
    for turn in [*system, *rest]:
        if merged and merged[-1].role == turn.role != "tool":  # several calls have an answer each
            merged[-1] = _merged(merged[-1], turn)
        else:
            merged.append(turn)
    if len(merged) < len(system) + len(rest):
        notes["consecutive turns of one speaker merged"] += 1
    return tuple(merged)


def conversation(turns: Turns, notes: Notes) -> Turns:
    """A repaired conversation that ends with a reply; a user turn at the end goes.

    Raises:
        Dropped: no reply is left.
    """
    kept = repaired(turns, notes)
    if kept[-1].role != "assistant":
        while kept and kept[-1].role != "assistant":
            kept = kept[:-1]
        if not kept:
            raise Dropped("no reply")
        notes["user turn without reply at the end removed"] += 1
    return kept


def prompt_turns(turns: Turns, notes: Notes) -> Turns:
    """A repaired conversation that must end with a user turn or a tool's answer; it is never cut.

    Replies depend on all of it.

    Raises:
        Dropped: it ends with a reply, has an empty turn, or is empty.
    """
    if any(turn.role != "system" and _is_empty(turn) for turn in turns):
        raise Dropped("empty turn in the prompt")
    kept = repaired(turns, notes)
    if kept[-1].role not in ("user", "tool"):
        raise Dropped("prompt does not end with a user turn")
    return kept


def as_prompt(value: Any, field: str, notes: Notes) -> Turns:
    """A prompt written as a string (one user turn) or as a list of turns."""
    if isinstance(value, str):
        value = as_text(value, field, notes)
        if not value.strip():
            raise Dropped("empty prompt")
        return (Message("user", value),)
    return prompt_turns(read_turns(value, field, notes), notes)
