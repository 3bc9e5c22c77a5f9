"""Exact duplicates: the first of records with the same text stays."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal

from data_formats.cleaning.steps import Finding
from data_formats.cleaning.store import Store
from data_formats.cleaning.texts import content_strings, normalised, prompt_text, reply_texts
from data_formats.records import Record


def content_key(record: Record, of: Literal["record", "prompt"] = "record") -> bytes:
    """128 bits that records with the same normalised texts (NFC, white space) share, with others by chance only.

    With `of="record"` roles, tool calls, reasoning and scores count too, so that a reply once liked and once disliked
    is no duplicate; category, source and tags do not.
    """
    digest = blake2b(type(record).__name__.encode(), digest_size=16)
    for text in content_strings(record, of=of):
        data = normalised(text).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)  # the length tells ("ab", "c") from ("a", "bc")
    return digest.digest()


class ExactDuplicates:
    """Drops a record whose text an earlier one has. Which *texts* stay does not depend on the order of the records.

    Remembers 16 bytes and a number per record, about 30 bytes, on disk; memory is flat (see `Store`).

    An example reads "FIRST = THIS: prompt", the numbers of the two among the records that reached the step.

    Args:
        of: "record" compares prompt and replies, "prompt" the prompt alone, so that each is kept once.
    """

    name = "exact_duplicates"
    compares = True
    looks_for = "records with the text of an earlier one (NFC, white space collapsed)"

    def __init__(self, of: Literal["record", "prompt"] = "record"):
        self._of: Literal["record", "prompt"] = of
        self._seen = 0
        self._store = Store("seen (key BLOB PRIMARY KEY, number INTEGER) WITHOUT ROWID")

    def check(self, record: Record) -> Finding | None:
        key = content_key(record, self._of)
        self._seen += 1
        if self._store.add("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, self._seen)):
            return None
        first = self._store.select("SELECT number FROM seen WHERE key = ?", (key,))[0][0]
        text = prompt_text(record) or next(iter(reply_texts(record)), "")
        return Finding("drop", "same text", f"{first} = {self._seen}: {text}")
