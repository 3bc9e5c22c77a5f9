"""Tool definitions and tool calls of raw rows -> JSON texts, keys in their order."""

from __future__ import annotations

import json
from typing import Any

from data_formats.errors import DataError
from data_formats.formats import Notes, as_text, shown
from data_formats.records import ToolCall

NO_ARGUMENTS = ("", "null", "None")  # and null: how calls without arguments are written beside {}
_NOT_A_CALL = "expected a call {name, arguments}"


def _parsed(value: Any, field: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error}); found {shown(value)}", field=field) from None


def _json_text(value: Any, field: str, notes: Notes) -> str:
    try:
        return as_text(json.dumps(value, ensure_ascii=False), field, notes)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be written as JSON ({error})", field=field) from None


def _call(raw: Any, field: str, notes: Notes) -> ToolCall:
    if isinstance(raw, dict) and isinstance(raw.get("function"), dict):
        raw = raw["function"]
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise DataError(f"{_NOT_A_CALL}, found {shown(raw)}", field=field)
    arguments = raw.get("arguments", raw.get("parameters", {}))
    if arguments is None or (isinstance(arguments, str) and arguments.strip() in NO_ARGUMENTS):
        arguments = {}
    parsed = _parsed(arguments, f"{field}.arguments")
    if not isinstance(parsed, dict):
        raise DataError(f"expected an object, found {shown(parsed)}", field=f"{field}.arguments")
    return ToolCall(as_text(raw["name"], field, notes), _json_text(parsed, f"{field}.arguments", notes))


def read_calls(value: Any, field: str, notes: Notes) -> tuple[ToolCall, ...]:
    """A call or a list of calls, as {name, arguments} OpenAI's {function: {name, arguments}}, or JSON text of these.

    Raises:
        DataError: not JSON, no name, or arguments that are no object.
    """
    parsed = _parsed(value, field)
    calls = parsed if isinstance(parsed, list) else [parsed]
    return tuple(_call(call, field, notes) for call in calls)


def read_tools(row: dict[str, Any], notes: Notes) -> tuple[str, ...]:
    """The functions on offer (`tools` or `functions`: a list, or the JSON text of one), each as JSON text.

    Raises:
        DataError: not JSON, or not a list of objects.
    """
    field = next((name for name in ("tools", "functions") if row.get(name) not in (None, "", [], {}, "[]")), None)
    if field is None:
        return ()
    parsed = _parsed(row[field], field)
    if not isinstance(parsed, list) or not all(isinstance(tool, dict) for tool in parsed):
        raise DataError(f"expected a list of function definitions, found {shown(parsed)}", field=field)
    return tuple(_json_text(tool, field, notes) for tool in parsed)
