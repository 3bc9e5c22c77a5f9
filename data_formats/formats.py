"""What a format is, and the small helpers with which formats read fields.

A format names the fields it needs, so that the most specific one can be chosen. Its `parse` turns a raw row into a
record, raises `DataError` (with the field) for a row that is malformed, and `Dropped` (with a reason) for one that is
well formed but of no use. Repairs that made a row usable are counted in `notes`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from align.runtime.terminal import shortened
from data_formats.errors import DataError
from data_formats.records import Record, tags_in

Notes = Counter[str]
# Notes about parts of a used row that were left out; the report counts the parts. All other notes are repairs of rows.
TIED_PAIRS = "pairs of equal score"
EMPTY_REPLIES = "replies without text"
OFF_THE_PATH = "messages off the best path"
LEFT_OUT = frozenset({TIED_PAIRS, EMPTY_REPLIES, OFF_THE_PATH})
SHOWN_KEYS, LONGEST_KEY = 20, 60  # of a row, in errors


class Dropped(Exception):
    """A well-formed row of no use; the reason is counted in the report. Never leaves this package."""


def any_values(row: Any) -> bool:
    """The test of a format that its fields' names tell."""
    return True


@dataclass(frozen=True, slots=True)
class Format:
    """A shape of rows for one kind of record.

    Attributes:
        name: as written in a recipe.
        kind: the record class.
        needs: fields that must be there; more of them make the format more specific.
        parse: raw row and notes -> a record, or several.
        fits: a further test of the values, where the names alone do not tell.
        group: a value of a row; rows that follow each other with the same one are parsed together, as `Neighbours`.
    """

    name: str
    kind: type[Record]
    needs: frozenset[str]
    parse: Callable[[Any, Notes], Record | tuple[Any, ...]]
    fits: Callable[[Any], bool] = any_values
    group: Callable[[Any], Any] | None = None

    def matches(self, row: Any) -> bool:
        """Whether a row has this shape."""
        if self.needs and not (isinstance(row, dict) and self.needs <= row.keys()):
            return False
        return self.fits(row)


def shown(value: Any) -> str:
    """A value for an error message, cut short."""
    return shortened(repr(value), 80)


def keys_of(row: Any) -> str:
    """The keys of a row for an error message: the first of them, each cut short."""
    if isinstance(row, list):
        return f"none (a list of {len(row)}; a file whose name ends in .json is read as one list of rows)"
    if not isinstance(row, dict):
        return f"none (a {type(row).__name__})"
    named = [shortened(key, LONGEST_KEY) for key in list(map(str, row))[:SHOWN_KEYS]]
    more = f" and {len(row) - SHOWN_KEYS} more" if len(row) > SHOWN_KEYS else ""
    return (", ".join(named) or "none") + more


def encodable(value: Any, notes: Notes) -> Any:
    """A JSON value whose texts and keys can be encoded; half a surrogate pair becomes U+FFFD (counted)."""
    try:
        _encode(value)
        return value
    except UnicodeEncodeError:
        return _encodable(value, notes)


def _encode(value: Any) -> None:
    if isinstance(value, str):
        if not value.isascii():
            value.encode()
    elif isinstance(value, list):
        for item in value:
            _encode(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _encode(key)
            _encode(item)


def _encodable(value: Any, notes: Notes) -> Any:
    if isinstance(value, str):
        return as_text(value, "", notes)
    if isinstance(value, list):
        return [_encodable(item, notes) for item in value]
    if isinstance(value, dict):
        return {_encodable(key, notes): _encodable(item, notes) for key, item in value.items()}
    return value


def as_text(value: Any, field: str, notes: Notes) -> str:
    """A string that can be encoded; half a surrogate pair becomes U+FFFD (counted).

    Raises:
        DataError: it is not a string.
    """
    if not isinstance(value, str):
        raise DataError(f"expected a string, found {type(value).__name__} {shown(value)}", field=field)
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        notes["unpaired surrogate replaced"] += 1
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def text_field(row: dict[str, Any], field: str, notes: Notes) -> str:
    """The string under `field`, which must be there."""
    if field not in row:
        raise DataError(f"the field is missing; found {keys_of(row)}", field=field)
    return as_text(row[field], field, notes)


def optional_text(row: dict[str, Any], field: str, notes: Notes) -> str:
    """The string under `field`, or "" when it is missing or null."""
    return as_text(row[field], field, notes) if row.get(field) is not None else ""


def scalar_text(value: Any, field: str, notes: Notes) -> str:
    """A string, a number or true and false as text: 4 and 4.0 (which Parquet makes of 4 beside a null) are "4".

    NaN, which pandas writes where there is nothing, is "".

    Raises:
        DataError: it is something else.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | float) else as_text(value, field, notes)


def label(row: dict[str, Any], field: str, notes: Notes) -> str:
    """What `field` names, as one string; "" when it is missing or null.

    Several names are a list, or an object of true and false whose true ones are meant; they are joined by ", ".
    """
    value = row.get(field)
    if isinstance(value, dict) and all(isinstance(flag, bool | None) for flag in value.values()):
        value = [name for name, flag in value.items() if flag]
    if isinstance(value, list):
        return ", ".join(scalar_text(item, field, notes) for item in value)
    return "" if value is None else scalar_text(value, field, notes)


def source_of(row: dict[str, Any]) -> str:
    """The string under `source`; other data sets' own meanings of that field are passed over."""
    value = row.get("source")
    return value if isinstance(value, str) else ""


def tags_of(row: dict[str, Any]) -> tuple[str, ...]:
    """What stands under `tags`, as `records.tags_in` reads it; other data sets' own meanings of it are passed over."""
    found = tags_in(dict.get(row, "tags"))
    if found:
        row.get("tags")  # asked for: it is not passed over
    return found


def _number(text: str) -> float | str:
    """The number that a text is, or the text."""
    try:
        return float(text) if text.isascii() and "_" not in text else text
    except ValueError:
        return text


def optional_number(row: dict[str, Any], field: str) -> float | None:
    """The finite number under `field`, or None when it is missing, null or ""; "4.5" is 4.5, as in CSV files."""
    value = row.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        value = _number(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise DataError(f"expected a finite number, found {shown(value)}", field=field)
    return float(value)


def as_flag(value: Any) -> bool | None:
    """True, 1 and "true" as True, false, 0 and "false" as False; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def flag(row: dict[str, Any], field: str) -> bool:
    """The flag under `field`, which must be there.

    Raises:
        DataError: it is missing, or no flag.
    """
    found = as_flag(row.get(field))
    if found is None:
        raise DataError(f"expected true or false, 1 or 0, found {shown(row.get(field))}", field=field)
    return found
