"""Rules of taste for the wanted replies (Llama 3, section 4.2.3): apologies at the opening, emoji, exclamation marks.

Llama 3 names the rules and not their numbers; the defaults here are ours. English and Chinese.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b

from data_formats.cleaning.steps import Finding
from data_formats.cleaning.texts import normalised, wanted_texts
from data_formats.records import Record

_APOLOGY = re.compile(
    r"""^\W*(?:(?:(?:oh|ah|well|no|hello|hi|yes|unfortunately)\b|哦|啊|嗯|您好|你好)\W*){0,2}(?:
      (?:i(?:['’]?m|\s+am)|we(?:['’]?re|\s+are))\s+(?:(?:so|very|truly|really|deeply|terribly|extremely)\W+){0,2}
        (?:sorry|apologetic)\b
    | (?:(?:so|very|really|terribly)\s+)?sorry\b(?!\s+(?:state|sight|excuse|tale|story))
    | (?:i|we)\s+(?:(?:do|must|sincerely|deeply|humbly|truly|want\s+to|would\s+like\s+to)\s+){0,2}apologi[sz]e\b
    | (?:(?:my|our|please\s+accept\s+(?:my|our))\s+)?(?:(?:sincere|sincerest|deepest|humble)\s+)?apolog(?:y|ies)\b
        (?=\s*(?:[,.!:;—-]|for\b|if\b|but\b|$))
    | (?:please\s+)?(?:forgive|pardon)\s+(?:me|my|us)\b
    | (?:我们?)?(?:在此)?(?:(?:感到|表示|真的?|真是|实在是?|非常|十分|很|深感|深表|万分|太|诚挚地?|向您|对此)){0,4}
        (?:抱歉|道歉(?![信函书的])|对不起|不好意思|致歉|歉意)
    | 请(?:您|你)?(?:原谅|见谅|谅解)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
# Characters shown as emoji by default, or commonly (U+263A, U+2764); arrows, stars, ticks and card suits are not meant.
_BASE = (
    "\U0001f300-\U0001f5ff\U0001f600-\U0001f64f\U0001f680-\U0001f6ff\U0001f7e0-\U0001f7eb\U0001f900-\U0001f9ff"
    "\U0001fa70-\U0001faff\u2600-\u2604\u2614\u2615\u2639\u263a\u267f\u26a1\u26bd\u26be\u26c4\u26c5\u26d4\u26f0-\u26fd"
    "\u2705\u270a-\u270d\u2728\u274c\u2753-\u2755\u2757\u2763\u2764\u2b50\u2b55"
)
_TAIL = "[\ufe0f\U0001f3fb-\U0001f3ff]*"
_EMOJI = re.compile(f"[\U0001f1e6-\U0001f1ff]{{2}}|[{_BASE}]{_TAIL}(?:\u200d[{_BASE}\u2640\u2642]{_TAIL})*")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
# A run is looked at once, from its first mark: a reply of a million marks must not take a million looks.
_END = re.compile(r"(?<![.!?。！？…])[.!?。！？…]++(?=$|[\s\"'”’)\]）」』*_]|[^\x00-\x7f])|[。！？]+")
_LOUD = re.compile("[!！]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Apologies:
    """Replies that open with an apology ("I'm sorry, but", "非常抱歉").

    Some are right, so Llama 3 balances their share: `keep` of them stay, chosen by a hash of the reply, so that the
    same ones stay whatever the order.
    """

    keep: float = 0.0

    name = "apologies"
    looks_for = "replies that open with an apology"

    def check(self, record: Record) -> Finding | None:
        for text in wanted_texts(record):
            if _APOLOGY.match(text):
                kept = _position(text) < self.keep
                return Finding("note" if kept else "drop", "kept by share" if kept else "apology", text)
        return None


def _position(text: str) -> float:
    """A stable number in [0, 1)."""
    digest = blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


@dataclass(frozen=True, slots=True, kw_only=True)
class Emoji:
    """Replies with more than `allowed` emoji that also are more than `max_per_100_chars`; a sequence counts once."""

    allowed: int = 3
    max_per_100_chars: float = 2.0

    name = "emoji"
    looks_for = "replies full of emoji"

    def check(self, record: Record) -> Finding | None:
        for text in wanted_texts(record):
            found = [] if text.isascii() else _EMOJI.findall(text)
            if len(found) > self.allowed and 100 * len(found) > self.max_per_100_chars * len(text):
                return Finding("drop", "too many emoji", text)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclamations:
    """Replies that shout: more than `allowed` sentences and more than the share `max_share` of them end with "!" or
    "！", or there is a run of `max_run` + 1 marks. Code is passed over; `!=` and `![` end no sentence.
    """

    allowed: int = 3
    max_share: float = 0.5
    max_run: int = 3

    name = "exclamations"
    looks_for = "replies in which most sentences end with an exclamation mark, and runs of them"

    def check(self, record: Record) -> Finding | None:
        for text in wanted_texts(record):
            if not _LOUD.search(text):
                continue
            prose = _CODE.sub(" ", text)
            ends = _END.findall(prose)
            loud = [end for end in ends if _LOUD.search(end)]
            longest = max((len(_LOUD.findall(end)) for end in loud), default=0)
            if longest > self.max_run:
                return Finding("drop", "run of exclamation marks", text)
            if len(loud) > self.allowed and len(loud) > self.max_share * len(ends):
                return Finding("drop", "too many exclamations", text)
        return None
