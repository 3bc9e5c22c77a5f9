"""Rows and turns that remember which of their keys a reader asked for, so that none is passed over unseen.

Whatever a parser reads is known by its reading it. Of the other keys that hold something, those in `HARMLESS` say who,
when or whence and are left alone; the rest are counted by their path in the notes as `PassedOver`, and the report shows
them. Keys whose meaning is known and would be lost are refused in `detection`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from align.runtime.terminal import shortened
from data_formats.errors import DataError
from data_formats.formats import LONGEST_KEY, Notes, shown

NOTHING: tuple[Any, ...] = (None, "", [], {}, "[]")  # values that say nothing
_WHICH = """
    id _id ids idx index row_id uuid uid guid key hash sha sha256 task_id prompt_id question_id answer_id response_id
    example_id sample_id instance_id turn_id message_id message_tree_id parent_id conversation_id conversation_hash
    dialogue_id chat_id session_id thread_id post_id user_id c_root_id_A c_root_id_B pair_id original_id
    turn turn_identifier
"""
_WHENCE = """
    source source_url url urls link origin dataset dataset_name subset split datasplit domain file filename path license
    author annotator annotator_id worker_id generator generator_1 generator_2 model models model_name model_a model_b
    chosen_model rejected_model response_model policy worker batch version meta metadata hashed_ip header country state
    provenance toxic redacted openai_moderation detoxify_moderation
"""
_WHEN = """
    date time timestamp tstamp created created_at created_date create_time update_time updated_at created_at_utc_A
    created_at_utc_B language lang
"""
HARMLESS = frozenset(f"{_WHICH} {_WHENCE} {_WHEN}".split())
_HOW = """
    name tool_call_id call_id type status finish_reason stop_reason signature cache_control
"""
HARMLESS_IN_TURNS = HARMLESS | set(_HOW.split())  # a turn's or a call's own name and number: no template renders them
_NUMBER = re.compile(r"\[\d+\]")


class PassedOver(str):
    """A note that is no repair: the path of a key that no reader understood, "messages[].foo"."""


class Fields(dict[str, Any]):
    """A raw object that remembers the keys asked for with `[]` and `get`; `in` and iterating ask for nothing.

    Args:
        raw: the object.
        at: where it stands, "" for a whole row, "messages[3]" for a turn.
    """

    __slots__ = ("asked", "at")

    def __init__(self, raw: dict[str, Any], at: str = ""):
        super().__init__(raw)
        self.at, self.asked = at, set[str]()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def unread(self) -> list[str]:
        """The keys that hold something and that nobody asked for."""
        return [key for key, value in self.items() if key not in self.asked and value not in NOTHING]

    def pass_over(self, notes: Notes, harmless: frozenset[str] = HARMLESS) -> None:
        """Count in `notes` what is unread and not harmless."""
        if self.asked.issuperset(self):
            return
        for key in self.unread():
            if key not in harmless:
                notes[_path(self.at, key)] += 1


def _path(at: str, key: str) -> PassedOver:
    """`at` without numbers, and the key, cut short."""
    cut = shortened(key, LONGEST_KEY)
    return PassedOver(f"{_NUMBER.sub('[]', at)}.{cut}" if at else cut)


def present(raw: dict[str, Any], names: Collection[str]) -> Sequence[str]:
    """Those of the names that are keys; quick where none is, as in most turns."""
    return () if raw.keys().isdisjoint(names) else [name for name in names if name in raw]


def objects(row: dict[str, Any], field: str, notes: Notes) -> Iterator[Fields]:
    """The objects of the list under `field`, each accounted for when the next is asked for.

    Raises:
        DataError: it is not a list of objects.
    """
    value = row[field]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"expected a list of objects, found {shown(value)}", field=field)
    at = getattr(row, "at", "")
    for number, item in enumerate(value):
        one = Fields(item, f"{at}.{field}[{number}]" if at else f"{field}[{number}]")
        yield one
        one.pass_over(notes, HARMLESS_IN_TURNS)
