"""Length limits."""

from __future__ import annotations

from dataclasses import dataclass

from data_formats.cleaning.steps import Finding
from data_formats.cleaning.texts import prompt_text, reply_texts
from data_formats.cleaning.units import units
from data_formats.records import Document, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Limits on the characters of prompt and replies and on a reply's words; None: no limit, limits are allowed.

    Every reply must keep them, the rejected one too (one that runs away is no lesson, only long). A demonstration's
    replies are its assistant turns, one by one; a document counts as a reply. A Chinese character counts as a word.
    """

    min_prompt_chars: int | None = None
    max_prompt_chars: int | None = None
    min_reply_chars: int | None = None
    max_reply_chars: int | None = None
    min_reply_words: int | None = None
    max_reply_words: int | None = None

    name = "length"
    looks_for = "prompts and replies outside the limits of length"

    def check(self, record: Record) -> Finding | None:
        if not isinstance(record, Document):
            prompt = prompt_text(record)
            if problem := _outside(len(prompt), self.min_prompt_chars, self.max_prompt_chars):
                return Finding("drop", f"prompt too {problem} in characters", prompt)
        for reply in reply_texts(record):
            if problem := _outside(len(reply), self.min_reply_chars, self.max_reply_chars):
                return Finding("drop", f"reply too {problem} in characters", reply)
            if self.min_reply_words is None and self.max_reply_words is None:
                continue
            if problem := _outside(len(units(reply)), self.min_reply_words, self.max_reply_words):
                return Finding("drop", f"reply too {problem} in words", reply)
        return None


def _outside(length: int, low: int | None, high: int | None) -> str | None:
    if low is not None and length < low:
        return "short"
    return "long" if high is not None and length > high else None
