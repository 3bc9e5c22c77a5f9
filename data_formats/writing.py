"""Records -> JSON Lines in our own rows, written atomically.

Reading such a file gives equal records back (`source` and empty fields are written only where they hold something).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from align.runtime.errors import StorageError
from align.runtime.files import atomic_file
from data_formats.records import Comparison, Demonstration, Document, Message, Prompt, Record, Reply, Scored


def _turn(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        row["reasoning_content"] = message.reasoning
    if message.tool_calls:
        calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
        row["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    if not message.loss:
        row["weight"] = 0
    return row


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [_turn(message) for message in messages]


def _reply(reply: Reply) -> dict[str, Any]:
    row: dict[str, Any] = {"content": reply.content, "score": reply.score}
    if reply.reasoning:
        row["reasoning_content"] = reply.reasoning
    if reply.attributes:
        row["attributes"] = dict(reply.attributes)
    if reply.steps:
        row["steps"] = [{"text": step.text, "rating": step.rating} for step in reply.steps]
    return row


def as_row(record: Record) -> dict[str, Any]:
    """The native row of a record."""
    match record:
        case Demonstration():
            row: dict[str, Any] = {"messages": _turns(record.messages), "category": record.category}
            row |= {"tags": list(record.tags)}
        case Comparison():
            row = {"prompt": _turns(record.prompt)}
            for side, turns, reply in (
                ("chosen", record.chosen_turns, record.chosen_reply),
                ("rejected", record.rejected_turns, record.rejected_reply),
            ):
                row[side] = _turns((*turns, reply)) if turns or reply.reasoning else reply.content
            row |= {"grade": record.grade, "category": record.category, "tags": list(record.tags)}
            row |= {"round": record.round, "provenance": record.provenance}
        case Scored():
            row = {"prompt": _turns(record.prompt), "replies": [_reply(reply) for reply in record.replies]}
            row |= {"category": record.category, "tags": list(record.tags)}
        case Prompt():
            row = {"prompt": _turns(record.messages), "category": record.category, "reference": record.reference}
            columns = dict(record.columns)
            row |= {"tags": columns.pop("tags")} if record.tags else {}
            row |= {"columns": columns or None}
        case Document():
            row = {"text": record.text}
    if not isinstance(record, Document):
        row["tools"] = [json.loads(tool) for tool in record.tools]
    return {key: value for key, value in (row | {"source": record.source}).items() if value not in (None, "", [])}


def jsonl_line(record: Record) -> str:
    """The native row of a record as JSON, without the end of the line."""
    return json.dumps(as_row(record), ensure_ascii=False)


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON Lines, see `write_lines`."""
    write_lines(path, map(jsonl_line, records))


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Write lines as they come: a temporary file beside `path`, then a rename.

    Raises:
        StorageError: writing failed; what was at `path` before is intact.
    """
    path = Path(path)
    try:
        with atomic_file(path) as file:
            file.writelines(line + "\n" for line in lines)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder"
        ) from error
