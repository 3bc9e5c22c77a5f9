"""Raw turns -> messages: role names, content parts, and the repairs that real conversations need.

Every repair is counted in `notes`, every conversation given up raises `Dropped` with its reason. Text is otherwise kept
as it is: control-token look-alikes stay text (see `chatml`), white space stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from data_formats.errors import DataError
from data_formats.fields import HARMLESS_IN_TURNS, NOTHING, Fields, present
from data_formats.formats import Dropped, Notes, as_text, keys_of, shown
from data_formats.loss import loss_of
from data_formats.records import Message, ToolCall
from data_formats.roles import role_of
from data_formats.tools import TOOL_FIELDS, called, read_calls, turn_list
from data_formats.transcripts import transcript

EXCHANGES = (("input", "output"), ("human", "assistant"), ("user", "assistant"))  # turns written by twos
_ANSWERS = frozenset(answer for _, answer in EXCHANGES)
CALLS = ("function_call", "tool_call")  # ShareGPT: the whole turn is a call
THOUGHTS = ("reasoning", "thinking")
REASONING_FIELDS = ("reasoning_content", *THOUGHTS)
# Fields of a turn that say what is not text, or of which part it is trained on: nothing here can honour them.
_UNSUPPORTED = ("images", "videos", "audios", "image", "video", "audio", "mask", "train_detail", "loss_scale")
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
        part = Fields(part, f"{field}[]") if isinstance(part, dict) else part
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind == "text":
            found.texts.append(as_text(_said_in(part, "text", "value"), field, notes))
        elif isinstance(kind, str) and kind in THOUGHTS:
            found.reasoning.append(as_text(_said_in(part, "value", "text", kind), field, notes))
        elif kind in ("tool_call", "tool_calls"):
            found.calls += read_calls(_said_in(part, "value", "text", kind), field, notes)
        else:
            known = "text, reasoning, thinking and tool_call"
            raise DataError(f"only parts of type {known} are supported, found {shown(kind)}", field=field)
        part.pass_over(notes, HARMLESS_IN_TURNS)
    return found


def _said_in(part: Fields, *names: str) -> Any:
    """What stands under the first of the names that is not null: in a Parquet file every part has the keys of all."""
    return next((part.get(name) for name in names if part.get(name) is not None), None)


def reasoning_of(raw: dict[str, Any], at: str, notes: Notes, also: str = "") -> str:
    """What a turn or row says was thought, in whichever field it stands.

    Args:
        at: where it stands, "" for a row.
        also: what its parts say.

    Raises:
        DataError: it says two different things, or what is no text.
    """
    said = {also: None}
    for name in present(raw, REASONING_FIELDS):
        if raw.get(name) not in NOTHING:
            said[as_text(raw[name], f"{at}.{name}" if at else name, notes)] = None
    thoughts = [text for text in said if text]
    if len(thoughts) > 1:
        raise DataError("two different reasonings are given for one reply; keep one", field=at or None)
    return "".join(thoughts)


def read_turn(raw: Any, field: str, notes: Notes) -> Message:
    """One turn, written as {role, content} (OpenAI) or {from, value} (ShareGPT).

    Every key is read, known to be harmless, counted in `notes` as passed over, or refused. The tools that a system turn
    offers are read by `tools.read_tools`.

    Raises:
        DataError: another shape, an unknown role, a malformed call, content that is not text, or a field of known
            meaning where it has none.
    """
    if not isinstance(raw, dict):
        raise DataError(f"expected a turn {{role, content}} or {{from, value}}, found {shown(raw)}", field=field)
    role_key, content_key = ("role", "content") if "role" in raw else ("from", "value")
    if len(raw) == 2 and role_key in raw and isinstance(raw.get(content_key), str):  # like most turns
        role = role_of(raw[role_key], f"{field}.{role_key}")
        if role != "assistant" or not _is_call(raw[role_key]):
            return Message(role, as_text(raw[content_key], f"{field}.{content_key}", notes))
    turn = Fields(raw, field)
    calls = called(turn, field, notes) if len(turn) > 2 or content_key not in turn else ()
    if role_key not in turn or (content_key not in turn and not calls):
        seen = keys_of(raw)
        raise DataError(f"expected a turn {{role, content}} or {{from, value}}, found the keys {seen}", field=field)
    name, at = turn[role_key], f"{field}.{content_key}"
    role = role_of(name, f"{field}.{role_key}")
    value = turn.get(content_key)
    if _is_call(name):
        calls, value = read_calls(value, at, notes) + calls, None
    parts = _parts("" if value is None and calls else value, at, notes)
    reasoning, loss = reasoning_of(turn, field, notes, "".join(parts.reasoning)), loss_of(turn, field)
    _refuse_out_of_place(turn, role, field)
    if role != "assistant" and (parts.calls or calls or reasoning):
        raise DataError(f"only an assistant thinks or calls tools, found it in a turn of the {role}", field=field)
    if role != "assistant" and loss:
        raise DataError(f"only an assistant's turn is trained on by itself, this is of the {role}", field=field)
    turn.pass_over(notes, HARMLESS_IN_TURNS)
    trained = loss is not False or role != "assistant"
    return Message(role, "".join(parts.texts), reasoning, parts.calls + calls, trained)


def _is_call(role_name: str) -> bool:
    return role_name.strip().lower() in CALLS


def _refuse_out_of_place(turn: Fields, role: str, field: str) -> None:
    for name in present(turn, TOOL_FIELDS):
        if turn.get(name) not in NOTHING and role != "system":
            raise DataError(
                f"tools are offered in a system turn or in the row, not by the {role}", field=f"{field}.{name}"
            )
    for name in present(turn, _UNSUPPORTED):
        if turn.get(name) not in NOTHING:
            raise DataError("this field of a turn is not supported; take it out", field=f"{field}.{name}")


def read_turns(raw: Any, field: str, notes: Notes) -> Turns:
    """The turns of a list, or of the JSON text of one, unrepaired."""
    raw = turn_list(raw) or raw
    if not isinstance(raw, list):
        raise DataError(f"expected a list of turns, found {type(raw).__name__} {shown(raw)}", field=field)
    turns: list[Message] = []
    for at, turn in enumerate(raw):
        names = _twofold(turn) if isinstance(turn, dict) else None
        turns += (
            _exchange(turn, names, f"{field}[{at}]", notes) if names else [read_turn(turn, f"{field}[{at}]", notes)]
        )
    return tuple(turns)


def _twofold(turn: dict[str, Any]) -> tuple[str, str] | None:
    """The names under which one object says something and answers it, where it does."""
    if turn.keys().isdisjoint(_ANSWERS):
        return None
    return next((names for names in EXCHANGES if turn.keys() >= set(names)), None)


def _exchange(raw: dict[str, Any], names: tuple[str, str], field: str, notes: Notes) -> Turns:
    """What is said and answered in one object, as Capybara writes turns; an answer that is missing yet is none."""
    said = Fields(raw, field)
    texts = [said[name] for name in names]
    pairs = zip(("user", "assistant"), names, texts, strict=True)
    turns = tuple(
        Message(role, as_text(text, f"{field}.{name}", notes)) for role, name, text in pairs if text is not None
    )
    said.pass_over(notes, HARMLESS_IN_TURNS)
    return turns


def _is_empty(turn: Message) -> bool:
    """Whether a turn says nothing; a call without text says something, and a tool may answer with nothing."""
    return turn.role != "tool" and not turn.content.strip() and not turn.tool_calls


def _merged(first: Message, second: Message) -> Message:
    text = "\n\n".join(turn.content for turn in (first, second) if turn.content)
    reasoning = "\n\n".join(turn.reasoning for turn in (first, second) if turn.reasoning)
    return Message(first.role, text, reasoning, first.tool_calls + second.tool_calls, first.loss)


def repaired(turns: Turns, notes: Notes) -> Turns:
    """A conversation that alternates: an optional system turn, then user, assistant, user, ...

    Empty system turns go; a reply before the first user turn goes; what follows the first empty turn goes with it; two
    turns of one speaker in a row become one, joined by a blank line.

    Raises:
        Dropped: a system turn in the middle, no user turn with text, or turns that cannot become one.
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
            if merged[-1].loss != turn.loss:
                raise Dropped("two replies in a row, one with loss and one without")
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


def without_flags(turns: Turns) -> Turns:
    """The turns as the context of a reply, where it means nothing whether they were to be trained on."""
    return tuple(turn if turn.loss else replace(turn, loss=True) for turn in turns)


def prompt_turns(turns: Turns, notes: Notes) -> Turns:
    """A repaired conversation that must end with a user turn or a tool's answer; it is never cut.

    Replies depend on all of it. None of its turns is trained on, whatever they say.

    Raises:
        Dropped: it ends with a reply, has an empty turn, or is empty.
    """
    if any(turn.role != "system" and _is_empty(turn) for turn in turns):
        raise Dropped("empty turn in the prompt")
    kept = repaired(without_flags(turns), notes)
    if kept[-1].role not in ("user", "tool"):
        raise Dropped("prompt does not end with a user turn")
    return kept


def as_prompt(value: Any, field: str, notes: Notes) -> Turns:
    """A prompt written as a list of turns, the JSON text of one, a transcript, or a string: one user turn."""
    turns = turn_list(value)
    if turns is None and isinstance(value, str):
        text = as_text(value, field, notes)
        if not text.strip():
            raise Dropped("empty prompt")
        said = transcript(text)
        if said is not None and said[-1] == Message("assistant", ""):
            said = said[:-1]  # "Assistant:", where the reply is to stand
        elif said is None or (said[-1].role == "assistant" and not text.startswith("\n\n")):
            return (Message("user", text),)
        notes["transcript read as turns"] += 1
        return prompt_turns(said, notes)
    return prompt_turns(read_turns(value if turns is None else turns, field, notes), notes)
