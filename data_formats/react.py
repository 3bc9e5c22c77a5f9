"""Observations inside a reply: ReAct text (Yao et al. 2022, 2210.03629), as the Qwen report (3.4) trained it.

    Thought: what to do
    Action: a tool
    Action Input: what it is called with
    Observation: what it answered
    Thought: …
    Final Answer: …

All of that stands in one assistant turn, but the tool wrote what follows `Observation:`. The model has to write up to
that word and no further (a program stops it there, calls the tool and puts the answer in), so the word has loss and the
answer none. A blank and line breaks before an answer's first line belong to where the tokenizer puts them: `:` and a
line break are one token of Qwen's.

Departure: nothing quotes an answer, so one that itself has a line that begins with `Thought:` ends there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from data_formats.chatml import Piece

OBSERVATION, INPUT = "Observation:", "Action Input:"
NEXT = ("Thought:", "Action:", "Final Answer:")


def observations(text: str) -> list[tuple[int, int]]:
    """Where in a reply a tool's answers stand: (start, end) of each, its last line break included."""
    found: list[tuple[int, int]] = []
    start, asked, at = -1, False, 0
    for line in text.splitlines(keepends=True):
        if start >= 0 and line.startswith(NEXT):
            found.append((start, at))
            start = -1
        if start < 0 and asked and line.startswith(OBSERVATION):
            empty = not line.removeprefix(OBSERVATION).strip()
            start, asked = at + (len(line) if empty else len(OBSERVATION)), False
        elif start < 0 and line.startswith(INPUT):
            asked = True
        at += len(line)
    return [one for one in [*found, (start, at)] if one[0] >= 0 and one[0] < one[1]]


def without_observations(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces of a conversation, those of its replies cut where a tool's answer begins and ends, which has no
    loss."""
    for piece in pieces:
        spans = observations(piece.text) if piece.turn and not piece.control else []
        if not spans:
            yield piece
            continue
        at = 0
        for start, end in spans:
            yield replace(piece, text=piece.text[at:start], joined=piece.joined and at == 0)
            yield Piece(piece.text[start:end])
            at = end
        if at < len(piece.text):
            yield replace(piece, text=piece.text[at:], joined=False)
