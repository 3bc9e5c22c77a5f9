"""Reading what a run has left, without trusting it: a file may be torn, of another kind, or edited by hand.

A missing file is empty; one that cannot be read as what it should be is a sentence of a `RunFileError`, or, for lines,
left out.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from align.runtime.errors import AlignError

Row = dict[str, Any]


class RunFileError(AlignError, ValueError):
    """A file in a run folder that is not what the run wrote there."""


def read_text(path: Path) -> str:
    """The text of `path`, empty where there is no such file. Raises RunFileError."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise RunFileError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise RunFileError(f"{path} cannot be read ({error.strerror or error})") from error


def read_object(path: Path, advice: str) -> Row | None:
    """The JSON object in `path`, None where there is no such file.

    Raises:
        RunFileError: the file is damaged; says with `advice` what to do.
    """
    if not path.exists():
        return None
    found = parse_json(read_text(path))
    if not isinstance(found, dict):
        raise RunFileError(f"{path} is not a whole JSON object: {advice}")
    return found


def read_objects(path: Path, advice: str) -> list[Row]:
    """The JSON lines in `path`. Raises RunFileError where it is missing or a line of it is not an object."""
    rows, others = objects(read_text(path)) if path.exists() else ([], 1)
    if others:
        what = f"{others} lines are no JSON objects" if path.exists() else "no such file"
        raise RunFileError(f"{path} cannot be read ({what}): {advice}")
    return rows


def parse_json(text: str) -> Any:
    """The value of `text`, None where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def objects(text: str) -> tuple[list[Row], int]:
    """The JSON objects among the lines of `text`, and how many other lines there are that are not empty."""
    lines = [line for line in text.split("\n") if line.strip()]
    rows = [row for line in lines if isinstance(row := parse_json(line), dict)]
    return rows, len(lines) - len(rows)


def number(value: Any) -> float | None:
    """`value` as a float where it is a finite number (truth values are none), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
