"""Tool definitions and tool calls of raw rows -> JSON texts, keys in their order."""

from __future__ import annotations

import json
import re
from typing import Any

from data_formats.errors import DataError
from data_formats.fields import HARMLESS_IN_TURNS, NOTHING, Fields, present
from data_formats.formats import Notes, as_text, shown
from data_formats.literals import value_in
from data_formats.records import ToolCall
from data_formats.roles import known_role

TOOL_FIELDS = ("tools", "functions")
CALL_FIELDS = ("tool_calls", "function_call", "function_calls")  # the latter two: before OpenAI had several a turn
_MAY_BE_TURNS = re.compile(r"""\s*\[?\s*\{\s*["']""")
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_NOT_A_CALL = "expected a call {name, arguments}"


def parsed(value: Any, field: str) -> Any:
    """A value, or what its JSON text says.

    Raises:
        DataError: a text that is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error}); found {shown(value)}", field=field) from None


def json_text(value: Any, field: str, notes: Notes) -> str:
    try:
        return as_text(json.dumps(value, ensure_ascii=False), field, notes)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be written as JSON ({error})", field=field) from None


def _call(raw: Any, field: str, notes: Notes) -> ToolCall:
    call = Fields(raw, field) if isinstance(raw, dict) else None
    if call is not None and isinstance(call.get("function"), dict):
        call.pass_over(notes, HARMLESS_IN_TURNS)
        call = Fields(call["function"], field)
    if call is None or not isinstance(call.get("name"), str):
        raise DataError(f"{_NOT_A_CALL}, found {shown(raw)}", field=field)
    arguments = next((call.get(name) for name in _ARGUMENTS if call.get(name) is not None), None)
    nothing = arguments in NOTHING or (isinstance(arguments, str) and arguments.strip() in ("", "null", "None"))
    given = {} if nothing else parsed(arguments, f"{field}.arguments")
    if not isinstance(given, dict):
        raise DataError(f"expected an object, found {shown(given)}", field=f"{field}.arguments")
    call.pass_over(notes, HARMLESS_IN_TURNS)
    return ToolCall(as_text(call["name"], field, notes), json_text(given, f"{field}.arguments", notes))


def read_calls(value: Any, field: str, notes: Notes) -> tuple[ToolCall, ...]:
    """A call or a list of calls, as {name, arguments} OpenAI's {function: {name, arguments}}, or JSON text of these.

    Raises:
        DataError: not JSON, no name, or arguments that are no object.
    """
    given = parsed(value, field)
    calls = given if isinstance(given, list) else [given]
    return tuple(_call(call, field, notes) for call in calls)


def called(turn: dict[str, Any], field: str, notes: Notes) -> tuple[ToolCall, ...]:
    """The calls of a turn (`tool_calls`, or the older `function_call`), the same one given in two fields once.

    Raises:
        DataError: see `read_calls`.
    """
    names = [name for name in present(turn, CALL_FIELDS) if turn[name] not in NOTHING]
    given = [read_calls(turn[name], f"{field}.{name}", notes) for name in names]
    return sum((calls for at, calls in enumerate(given) if calls not in given[:at]), ())


def read_tools(row: dict[str, Any], notes: Notes) -> tuple[str, ...]:
    """The functions on offer: `tools` or `functions` of the row and of its system turns, each once, as JSON text.

    Each field is a list (of objects or of their JSON texts), or the JSON text of one.

    Raises:
        DataError: not JSON, or not a list of objects.
    """
    offers = [(name, row[name]) for name in present(row, TOOL_FIELDS) if row[name] not in NOTHING]
    for field, value in row.items():
        for at, turn in enumerate(turn_list(value) or ()):
            given = [name for name in present(turn, TOOL_FIELDS) if turn[name] not in NOTHING]
            if given and known_role(turn.get("role", turn.get("from"))) == "system":
                offers += [(f"{field}[{at}].{name}", turn[name]) for name in given]
    found: dict[str, None] = {}
    for field, offer in offers:
        given = parsed(offer, field)
        if given is None:
            continue
        tools = [parsed(tool, field) for tool in given] if isinstance(given, list) else [None]
        if not all(isinstance(tool, dict) for tool in tools):
            raise DataError(f"expected a list of function definitions, found {shown(given)}", field=field)
        found |= {json_text(tool, field, notes): None for tool in tools}
    return tuple(found)


def turn_list(value: Any) -> list[dict[str, Any]] | None:
    """The raw turns of a list of turns, or of the text of one (of a single turn, too); None for anything else.

    A text may be any JSON (or Python, as `str` writes a list), so each of its turns must have a known role and
    something said.
    """
    is_turn = _has_speaker
    if isinstance(value, str):
        if not _MAY_BE_TURNS.match(value):
            return None
        value, is_turn = value_in(value), _is_said
        value = [value] if isinstance(value, dict) else value
    turns = isinstance(value, list) and value and all(isinstance(one, dict) and is_turn(one) for one in value)
    return value if turns else None


def _has_speaker(turn: dict[str, Any]) -> bool:
    return "role" in turn or "from" in turn


def _is_said(turn: dict[str, Any]) -> bool:
    speaker, said = ("role", "content") if "role" in turn else ("from", "value")
    return known_role(turn.get(speaker)) is not None and (said in turn or any(name in turn for name in CALL_FIELDS))
