"""Who speaks: the names that data sets give to roles."""

from __future__ import annotations

from typing import Any

from data_formats.errors import DataError
from data_formats.formats import shown

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


def known_role(name: Any) -> str | None:
    """The role that a name stands for, None where it is none."""
    return ROLE_NAMES.get(name) or ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None


def role_of(name: Any, field: str) -> str:
    """The role that a name stands for.

    Raises:
        DataError: an unknown one.
    """
    role = known_role(name)
    if role is None:
        raise DataError(f"unknown role {shown(name)}; known are {', '.join(ROLE_NAMES)}", field=field)
    return role
