"""What judge and reply say to each other: lines of JSON over a socket, with Python's plain values in them.

A value arrives as what it is built of, never as an object of somebody's class: an `int` whose `__eq__` lies is an int
again. What is no plain data stays where it is and has a number (`ref`), by which it can be called and asked.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MOST = 8 << 20  # bytes of a message
PLAIN = 1 << 63  # integers up to here are JSON's


class WireError(Exception):
    """The other side ended, said too much, or something that is no message."""


def send(file: int, message: dict[str, Any]) -> None:
    """One message.

    Raises:
        WireError: it is too long, or nobody reads.
    """
    data = json.dumps(message).encode() + b"\n"
    if len(data) > MOST:
        raise WireError("too long")
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError as error:
        raise WireError("ended") from error


def receive(file: int) -> dict[str, Any]:
    """One message. The sides take turns, so nothing of the next one is read.

    Raises:
        WireError: there is none.
    """
    parts, length = [], 0
    while not parts or not parts[-1].endswith(b"\n"):
        try:
            part = os.read(file, 1 << 16)
        except OSError as error:
            raise WireError("ended") from error
        length += len(part)
        if not part or length > MOST:
            raise WireError("too long" if part else "ended")
        parts.append(part)
    try:
        message = json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        raise WireError("no message") from error
    if not isinstance(message, dict):
        raise WireError("no message")
    return message


def encoded(value: Any, other: Callable[[Any], Any]) -> Any:
    """`value` as JSON.

    Args:
        other: what stands for a value that is no plain data.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int(value)
        return number if -PLAIN < number < PLAIN else {"int": hex(number)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encoded(item, other) for item in value]
    for name, kind in (("tuple", tuple), ("set", set), ("frozenset", frozenset), ("deque", deque)):
        if isinstance(value, kind):
            return {name: [encoded(item, other) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encoded(key, other), encoded(item, other)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Decimal):
        return {"Decimal": str(value)}
    if isinstance(value, Fraction):
        return {"Fraction": [encoded(value.numerator, other), encoded(value.denominator, other)]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    return other(value)


def decoded(value: Any, other: Callable[[str, Any], Any]) -> Any:
    """The value that was encoded.

    Args:
        other: makes something of the name and the content of what is no plain data.
    """
    if isinstance(value, list):
        return [decoded(item, other) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    match name:
        case "int":
            return int(content, 16)
        case "tuple" | "set" | "frozenset" | "deque":
            kind = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}[name]
            return kind(decoded(item, other) for item in content)
        case "dict":
            return {decoded(key, other): decoded(item, other) for key, item in content}
        case "bytes":
            return bytes.fromhex(content)
        case "complex":
            return complex(*content)
        case "Decimal":
            return Decimal(content)
        case "Fraction":
            return Fraction(*(decoded(item, other) for item in content))
        case "range":
            return range(*content)
    return other(name, content)
