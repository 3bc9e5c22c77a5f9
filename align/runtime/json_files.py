"""JSON and JSON lines that others wrote: the one reader of lines, and reading what a run has left without trusting it.

A run's file may be torn, of another kind, or edited by hand. A missing one is empty; one that cannot be read as what it
should be is a sentence of a `RunFileError`, which names the line, or, for lines, left out and counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from align.runtime.errors import AlignError
from align.runtime.terminal import shortened

Row = dict[str, Any]
Refuse = Callable[[int, str], None]

_IS_LIST = "this is a JSON list, not JSON Lines: give the file a name that ends in .json"


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
    """The JSON lines in `path`.

    Raises:
        RunFileError: it is missing, or a line of it is not an object; says with `advice` what to do.
    """
    return list(each_object(path, advice))


def each_object(path: Path, advice: str) -> Iterator[Row]:
    """The JSON lines in `path`, one after the other; of a long file one is in memory. Errors as of `read_objects`."""

    def refuse(line: int, problem: str) -> None:
        raise RunFileError(f"{path} cannot be read (line {line}: {problem}): {advice}")

    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            yield from _objects(file, refuse)
    except FileNotFoundError:
        raise RunFileError(f"{path} cannot be read (no such file): {advice}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise RunFileError(f"{path} cannot be read ({error}): {advice}") from error


def json_lines(lines: Iterable[str], refuse: Refuse) -> Iterator[tuple[int, Any]]:
    """The value of every line that is not empty, with its number from 1.

    Args:
        refuse: is told the number of a line that holds no JSON value, or more than one, or the whole as a list, and
            what is wrong with it; it raises, or returns to have the line left out.
    """
    first = True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except RecursionError:
            refuse(number, "nested too deeply to be read")
        except ValueError as error:
            is_list = first and line.lstrip().startswith("[")
            said = f"not a JSON value ({_said(line, error)}); the line starts {shortened(line.strip(), 40)!r}"
            refuse(number, _IS_LIST if is_list else said)
        else:
            if first and isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
                refuse(number, _IS_LIST)
            else:
                yield number, value
        first = False


def _said(text: str, error: ValueError) -> str:
    """What is wrong, in the decoder's words or in plainer ones where it is a common slip."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)  # a number of thousands of digits
    before = text[: error.pos].rstrip()
    if error.msg == "Extra data" and text[error.pos :].strip() == ",":
        return "a comma stands behind the value, as in a list; JSON Lines has none between its lines"
    if error.msg == "Extra data":
        return f"two values stand on one line, the second from column {error.colno}"
    if error.pos >= len(text.rstrip()) and before.endswith(("{", "[", ",", ":", '"')):
        return f"{error.msg}: it does not end on this line, and JSON Lines has a whole value on each"
    if before.endswith(",") and text[error.pos : error.pos + 1] in ("}", "]"):
        return f"a comma stands before the '{text[error.pos]}' that closes it"
    return f"{error.msg}, column {error.colno}"


def parse_json(text: str) -> Any:
    """The value of `text`, None where it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def objects(text: str) -> tuple[list[Row], int]:
    """The JSON objects among the lines of `text`, and how many other lines there are that are not empty."""
    others: list[int] = []
    rows = list(_objects(text.split("\n"), lambda line, _: others.append(line)))
    return rows, len(others)


def _objects(lines: Iterable[str], refuse: Refuse) -> Iterator[Row]:
    for line, value in json_lines(lines, refuse):
        if isinstance(value, dict):
            yield value
        else:
            refuse(line, "this is no JSON object")


def number(value: Any) -> float | None:
    """`value` as a float where it is a finite number (truth values are none), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
