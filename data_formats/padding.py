"""The nulls of columnar files: in Parquet and Arrow all structs of a column have the same fields, so that a call of
`weather(city)` beside one of `power(base, exponent)` comes back with `base` and `exponent` null.

Where a struct's keys are what is said (the arguments of calls, the schemas of tools) such a null is taken for padding
and goes; one that was meant cannot be told from it. JSON pads nothing, so its nulls stay.
"""

from __future__ import annotations

from typing import Any

from data_formats.tools import TOOL_FIELDS

_OPEN = frozenset({*TOOL_FIELDS, "arguments", "parameters"})  # below these a struct has the keys of one call or tool


def without_padding(value: Any) -> Any:
    """A row without the null keys below its calls' arguments and its tools; the very row where there are none."""
    if isinstance(value, list):
        return _same_or(value, [without_padding(one) for one in value])
    if not isinstance(value, dict):
        return value
    return _same_or(value, {key: (_deep if key in _OPEN else without_padding)(one) for key, one in value.items()})


def _deep(value: Any) -> Any:
    if isinstance(value, list):
        return _same_or(value, [_deep(one) for one in value])
    if not isinstance(value, dict):
        return value
    return _same_or(value, {key: _deep(one) for key, one in value.items() if one is not None})


def _same_or(before: Any, after: Any) -> Any:
    """`before` itself where nothing changed, so that whether it did costs no comparison."""
    if isinstance(before, dict):
        same = len(before) == len(after) and all(after[key] is one for key, one in before.items())
    else:
        same = all(one is other for one, other in zip(before, after, strict=True))
    return before if same else after
