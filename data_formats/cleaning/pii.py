"""Personal data in a record: masked by typed placeholders, dropped with the record, or only counted.

Every text of a record is looked at, the rejected reply and the tool calls too; categories, sources and columns are not.
Examples in the report are cut from the masked text, so that a log holds no one's number.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from align.runtime.packages import is_installed
from data_formats.cleaning.pii_patterns import KINDS, PLACEHOLDERS, mask_by_pattern
from data_formats.cleaning.presidio import PresidioMask
from data_formats.cleaning.steps import Finding
from data_formats.cleaning.texts import map_contents
from data_formats.records import Record

Mask = Callable[[str], tuple[str, Counter[str]]]
Finder = Literal["auto", "patterns", "presidio"]
_JSON = ("arguments", "tools")
_AROUND = 24  # characters of the masked text on either side of a placeholder


class PII:
    """Personal data of the given kinds.

    Args:
        action: "mask" puts `<EMAIL>`, `<PHONE>`, … in its place, "drop" leaves the record out, "keep" counts only.
        kinds: some of `data_formats.cleaning.pii_patterns.KINDS`, and "name", which presidio alone finds.
        by: "patterns" are ours; "presidio" asks presidio's recognisers as well; "auto" does where it is installed, so
            that what is found then depends on the machine.

    Raises:
        MissingPackageError: presidio, or for names an English model of spaCy, is not installed.
    """

    name = "pii"

    def __init__(
        self,
        action: Literal["mask", "drop", "keep"] = "mask",
        kinds: Sequence[str] = KINDS,
        by: Finder = "auto",
    ):
        self._action = action
        asks_presidio = by == "presidio" or "name" in kinds or (by == "auto" and is_installed("presidio_analyzer"))
        self._mask: Mask = PresidioMask(kinds) if asks_presidio else _Patterns(kinds)
        self.looks_for = f"personal data, by {'presidio and ' if asks_presidio else ''}patterns: {', '.join(kinds)}"

    def check(self, record: Record) -> Finding | None:
        counts: Counter[str] = Counter()
        excerpt: list[str] = []

        def masked(text: str, field: str) -> str:
            found, own = (self._in_json if field in _JSON else self._mask)(text)
            counts.update(own)
            if own and not excerpt:
                excerpt.append(_around(found, own))
            return found

        repaired = map_contents(record, masked)
        if not counts:
            return None
        kinds = ", ".join(sorted(counts))
        if self._action == "mask":
            return Finding("repair", f"{kinds} masked", excerpt[0], repaired)
        return Finding("drop" if self._action == "drop" else "note", kinds, excerpt[0])

    def _in_json(self, text: str) -> tuple[str, Counter[str]]:
        """A JSON text that stays one: strings are read as they are meant (`\\n` is no letter), a name says what its
        value is (`"phone": 5550199`), and a number that is masked becomes a string."""
        counts: Counter[str] = Counter()

        def masked(text: str, name: str = "") -> str:
            before = f"{name}: " if name else ""
            found, own = self._mask(before + text)
            if not found.startswith(before):  # the name is a find itself
                before, (found, own) = "", self._mask(text)
            counts.update(own)
            return found.removeprefix(before)

        def walked(value: Any, name: str = "") -> Any:
            if isinstance(value, dict):
                return {masked(key): walked(item, key) for key, item in value.items()}
            if isinstance(value, list):
                return [walked(item, name) for item in value]
            if isinstance(value, bool) or not isinstance(value, str | int):
                return value
            found = masked(str(value), name)
            return value if found == str(value) else found

        try:
            found = json.dumps(walked(json.loads(text)), ensure_ascii=False)
        except (ValueError, RecursionError):  # none, or one too deep to walk through
            return self._mask(text)
        return (found, counts) if counts else (text, counts)


class _Patterns:
    """`mask_by_pattern` for some kinds; a class, so that steps can be sent to another process."""

    def __init__(self, kinds: Sequence[str]):
        self._kinds = tuple(kinds)

    def __call__(self, text: str) -> tuple[str, Counter[str]]:
        return mask_by_pattern(text, self._kinds)


def _around(masked: str, counts: Counter[str]) -> str:
    placeholder = PLACEHOLDERS.get(min(counts), f"<{min(counts).upper()}>")
    at = max(masked.find(placeholder), 0)
    return masked[max(0, at - _AROUND) : at + len(placeholder) + _AROUND]
