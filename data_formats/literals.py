"""Values that a text holds, as JSON or as Python writes them."""

from __future__ import annotations

import ast
import json
from typing import Any

LONGEST_LITERAL = 2**20  # characters of Python; its parser takes hundreds of bytes for each


def value_in(text: str) -> Any:
    """The value that a text is in JSON, or in Python's spelling (which `str` and pandas write); None for neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > LONGEST_LITERAL or "'" not in text:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
