"""Items from any file that holds several replies to a prompt: one of collected items, or what `data_formats` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from align.feedback.items import FeedbackItem, FeedbackReply, load_items, new_item
from align.runtime.paths import typed_path
from data_formats.errors import DataError
from data_formats.files import raw_rows
from data_formats.reading import preference_kind, stream
from data_formats.records import Comparison, Message, Prompt, Scored
from data_formats.writing import as_row


def read_items(path: str | Path) -> list[FeedbackItem]:
    """The items of a file: those it holds, or of each prompt one, with all different replies to it that it has.

    What becomes of a file that holds no items is the same whenever it is read, ids and order too. Where sides are
    compared that part before their last reply, the pair is left out.

    Raises:
        MissingFileError: no such file.
        DataError: it has another shape, or a row is malformed; names file, row and field.
    """
    file = typed_path(path)
    _, first = next(iter(raw_rows(file)), (0, None))
    replies = first.get("replies") if isinstance(first, dict) else None
    if isinstance(replies, list) and all(isinstance(one, dict) and {"id", "reply"} <= one.keys() for one in replies):
        return load_items(file)
    try:
        kind = preference_kind(file)
    except DataError:
        kind = Scored  # replies without a score, one a row perhaps
    found: dict[str, tuple[Prompt, dict[str, FeedbackReply]]] = {}
    for record in stream(file, kind):
        prompt = Prompt(record.prompt, record.category, tools=record.tools)
        key = json.dumps(as_row(Prompt(record.prompt, tools=record.tools)))
        _, known = found.setdefault(key, (prompt, {}))
        for text, source in _replies(record):
            known.setdefault(text, FeedbackReply("", text, source))
    return [new_item(prompt, list(known.values())) for prompt, known in found.values()]


def _replies(record: Scored | Comparison) -> Iterator[tuple[str, str]]:
    """Text and source of each."""
    if isinstance(record, Scored):
        yield from ((reply.content, record.source) for reply in record.replies)
    elif not (record.chosen_turns or record.rejected_turns):
        yield from ((text, record.source) for text in (record.chosen, record.rejected))


def turn_text(turn: Message) -> str:
    """What a turn says, and what it calls."""
    calls = [f"{call.name}({call.arguments})" for call in turn.tool_calls]
    return "\n".join(filter(None, [turn.content, *calls]))


def conversation_text(turns: tuple[Message, ...]) -> str:
    """A conversation as one text, for what shows no turns: a single user's turn alone, else each under its role."""
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].content
    return "\n\n".join(f"{turn.role}: {turn_text(turn)}" for turn in turns)
