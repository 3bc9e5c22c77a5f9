"""Raw turns -> messages: role names, content parts, and the repairs that real conversations need.

Every repair is counted in `notes`, every conversation given up raises `Dropped` with its reason. Text is otherwise kept
as it is: control-token look-alikes stay text (see `chatml`), white space stays.
"""

from __future__ import annotations

from typing import Any

from data_formats.errors import DataError
from data_formats.formats import Dropped, Notes, as_text, shown
from data_formats.records import Message

ROLE_NAMES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
Turns = tuple[Message, ...]


def _content(value: Any, field: str, notes: Notes) -> str:
    """A string, or the texts of a list of parts joined without separator."""
    if not isinstance(value, list):
        return as_text(value, field, notes)
    texts = []
    for part in value:
        if isinstance(part, str):
            texts.append(as_text(part, field, notes))
            continue
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text":
            raise DataError(f"only text parts are supported, found a part of type {shown(kind)}", field=field)
        texts.append(as_text(part.get("text", part.get("value")), field, notes))
    return "".join(texts)


def read_turn(raw: Any, field: str, notes: Notes) -> Message:
    """One turn, written as {role, content} (OpenAI) or {from, value} (ShareGPT).

    Raises:
        DataError: another shape, an unknown role, tool calls, or content that is not text.
    """
    if not isinstance(raw, dict):
        raise DataError(f"expected a turn {{role, content}} or {{from, value}}, found {shown(raw)}", field=field)
    role_key, content_key = ("role", "content") if "role" in raw else ("from", "value")
    if role_key not in raw or content_key not in raw:
        found = ", ".join(sorted(map(str, raw))) or "nothing"
        raise DataError(f"expected a turn {{role, content}} or {{from, value}}, found the keys {found}", field=field)
    role = ROLE_NAMES.get(raw[role_key]) if isinstance(raw[role_key], str) else None
    if role is None:
        known = ", ".join(ROLE_NAMES)
        raise DataError(f"unknown role {shown(raw[role_key])}; known are {known}", field=f"{field}.{role_key}")
    if raw.get("tool_calls"):
        raise DataError("tool calls are not supported by this reader", field=f"{field}.tool_calls")
    if role == "assistant" and raw.get("loss_weight", 1) != 1:
        weight = shown(raw["loss_weight"])
        raise DataError(f"assistant turns are trained with weight 1, found {weight}", field=f"{field}.loss_weight")
    return Message(role, _content(raw[content_key], f"{field}.{content_key}", notes))


def read_turns(raw: Any, field: str, notes: Notes) -> Turns:
    """The turns of a list, unrepaired."""
    if not isinstance(raw, list):
        raise DataError(f"expected a list of turns, found {type(raw).__name__} {shown(raw)}", field=field)
    return tuple(read_turn(turn, f"{field}[{at}]", notes) for at, turn in enumerate(raw))


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
    if rest and rest[0].role == "assistant":
        notes["reply before the first user turn removed"] += 1
        while rest and rest[0].role == "assistant":
            rest.pop(0)
    empty = next((at for at, turn in enumerate(rest) if not turn.content.strip()), None)
    if empty is not None:
        rest = rest[:empty]
        if rest:
            notes["cut at an empty turn"] += 1
    if not rest:
        raise Dropped("no turn with text" if empty is None else "empty turn")
    merged: list[Message] = []
    for turn in [*system, *rest]:
        if merged and merged[-1].role == turn.role:
            merged[-1] = Message(turn.role, f"{merged[-1].content}\n\n{turn.content}")
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
        kept = kept[:-1]
        if not kept or kept[-1].role != "assistant":
            raise Dropped("no reply")
        notes["user turn without reply at the end removed"] += 1
    return kept


def prompt_turns(turns: Turns, notes: Notes) -> Turns:
    """A repaired conversation that must end with a user turn; replies depend on all of it, so it is never cut.

    Raises:
        Dropped: it ends with a reply, has an empty turn, or is empty.
    """
    if any(turn.role != "system" and not turn.content.strip() for turn in turns):
        raise Dropped("empty turn in the prompt")
    kept = repaired(turns, notes)
    if kept[-1].role != "user":
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
