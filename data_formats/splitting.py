"""Held-out splits by a hash: a prompt is always on the same side, whatever the order, the seed or the other records."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TypeVar

from data_formats.records import Comparison, Document, Message, Record, Scored

R = TypeVar("R", bound=Record)


def prompt_key(record: Record) -> str:
    """What is never on both sides: a conversation's first user turn, a document's text (NFC, white space collapsed).

    The first turn, not the whole prompt: conversations that branch off a common beginning stay together.
    """
    if isinstance(record, Document):
        text = record.text
    else:
        messages: tuple[Message, ...] = record.prompt if isinstance(record, Comparison | Scored) else record.messages
        text = next((message.content for message in messages if message.role == "user"), "")
    return text_key(text)


def text_key(text: str) -> str:
    """`prompt_key` of a first user turn or a text."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _position(key: str) -> float:
    """A stable number in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=6).digest(), "big") / 2**48


def heldout_keys(keys: Iterable[str], share: float) -> set[str]:
    """Which of the keys are held out, as in `split_heldout`."""
    positions = {key: _position(key) for key in set(keys)}
    held = {key for key, position in positions.items() if position < share}
    if 0 < share < 1 and positions:
        by_position = sorted(positions, key=lambda key: (positions[key], key))
        held = held or {by_position[0]}
        held = held - {by_position[-1]}
    return held


def heldout_marks(records: Iterable[R], share: float) -> Iterator[tuple[R, bool]]:
    """Each record, and whether it is held out, by a hash of the prompt. None is kept once both sides have one.

    Args:
        share: part of the prompts to hold out, 0 to 1. Strictly between, train gets at least one prompt, and so does
            held-out where there are two.
    """
    records, waiting, sides = iter(records), [], set()
    for record in records:
        waiting.append(record)
        sides.add(_position(prompt_key(record)) < share)
        if len(sides) == 2:
            for one in chain(waiting, records):
                yield one, _position(prompt_key(one)) < share
            return
    held = heldout_keys(map(prompt_key, waiting), share)
    for record in waiting:
        yield record, prompt_key(record) in held


def split_heldout(records: Iterable[R], share: float) -> tuple[list[R], list[R]]:
    """Train and held-out records by `heldout_marks`, each in the given order."""
    train: list[R] = []
    heldout: list[R] = []
    for record, held in heldout_marks(records, share):
        (heldout if held else train).append(record)
    return train, heldout
