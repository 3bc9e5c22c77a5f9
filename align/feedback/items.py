"""What is compared: a prompt with several replies to it, in an order that says nothing of who wrote them.

A file of items is JSON Lines, a row a prompt:

    {"id", "prompt": [turns], "category", "tags", "round", "replies": [{"id": "r0", "reply", "source", "sampling",
     "weights"}, …]}

`source` names who wrote a reply, `weights` is what identifies the weights it was drawn with, `sampling` says how. Who
shows an item to people hides these three. `reference`, `columns` and `tools` are those of the prompt's own row, where
it has any, for judges that ask for them. `data_formats` reads the file as replies without a score.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.runtime.errors import MissingFileError
from align.runtime.json_files import json_lines, read_text
from align.runtime.paths import typed_path
from data_formats.errors import DataError
from data_formats.formats import Notes, keys_of, shown
from data_formats.records import Message, Prompt
from data_formats.tools import read_tools
from data_formats.turns import read_turns
from data_formats.writing import as_row


@dataclass(frozen=True, slots=True)
class FeedbackReply:
    """One of an item's replies.

    Attributes:
        id: of this reply within its item; by its place in the order that is shown, so it says nothing of the source.
        sampling: temperature, top_p, max_tokens and seed it was drawn with.
        weights: the same for the same weights.
    """

    id: str
    reply: str
    source: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""


@dataclass(frozen=True, slots=True)
class FeedbackItem:
    """A prompt with the replies that are compared, in the order they stand in the file.

    Attributes:
        id: made of prompt and replies: what was judged under this id is what stands under it.
        round: of the loop in which it was collected; 0 before any.
        tools, reference, columns: as of `Prompt`.
    """

    id: str
    prompt: tuple[Message, ...]
    replies: tuple[FeedbackReply, ...]
    category: str = ""
    tags: tuple[str, ...] = ()
    round: int = 0
    tools: tuple[str, ...] = ()
    reference: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> Prompt:
        """What the replies answer, as a record."""
        return Prompt(self.prompt, self.category, self.reference, tools=self.tools, columns=self.columns)

    def reply(self, name: str) -> FeedbackReply | None:
        """The reply of this id; None: there is none."""
        return next((one for one in self.replies if one.id == name), None)

    def row(self) -> dict[str, Any]:
        """Its line of a file, as an object."""
        asked = as_row(self.asked)
        replies = [
            {"id": one.id, "reply": one.reply, "source": one.source, "sampling": dict(one.sampling)}
            | {"weights": one.weights}
            for one in self.replies
        ]
        about = {"category": self.category, "tags": list(self.tags), "round": self.round}
        row = {"id": self.id, "prompt": asked["prompt"], **about, "replies": replies}
        return row | {name: asked[name] for name in ("reference", "columns", "tools") if name in asked}


def new_item(
    prompt: Prompt, replies: Sequence[FeedbackReply], *, tags: Iterable[str] = (), round: int = 0, seed: int = 0
) -> FeedbackItem:
    """An item of replies in a shuffled order, which give up the ids they had.

    Args:
        round: of the loop, 0 before any.
        seed: of the order, together with the prompt.
    """
    asked = as_row(Prompt(prompt.messages, tools=prompt.tools))
    order = list(replies)
    random.Random(f"{seed}/{json.dumps(asked)}").shuffle(order)
    named = tuple(
        FeedbackReply(f"r{at}", one.reply, one.source, one.sampling, one.weights) for at, one in enumerate(order)
    )
    text = json.dumps([asked, [one.reply for one in named]])
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    columns = {name: value for name, value in prompt.columns.items() if value is not None and name != "tags"}
    about = {"tools": prompt.tools, "reference": prompt.reference, "columns": columns}
    return FeedbackItem(key, prompt.messages, named, prompt.category, tuple(tags), round, **about)


def load_items(path: str | Path) -> list[FeedbackItem]:
    """The items of a file.

    Raises:
        MissingFileError: no such file.
        RunFileError: it is no UTF-8 text, or cannot be read.
        DataError: a row that is no item, or an id that another row has.
    """
    file = typed_path(path)
    if not file.is_file():
        raise MissingFileError(f"{file}: no such file of collected replies; `align collect` writes one")

    def refuse(line: int, problem: str) -> None:
        raise DataError(problem, path=file, line=line)

    items: dict[str, FeedbackItem] = {}
    for line, value in json_lines(read_text(file).split("\n"), refuse):
        try:
            item = _item(value)
            if item.id in items:
                raise DataError(f"another row has the id {item.id} too; keep one of them", field="id")
        except DataError as error:
            raise DataError(error.problem, path=file, line=line, field=error.field) from None
        items[item.id] = item
    return list(items.values())


def _item(row: Any) -> FeedbackItem:
    """Raises DataError where a value is not what an item has there."""
    if not isinstance(row, dict):
        raise DataError(f"expected an object, found {shown(row)}")
    replies = _value(row, "replies", list)
    if not all(isinstance(one, dict) for one in replies):
        raise DataError(f"expected a list of objects, found {shown(replies)}", field="replies")
    found = tuple(_reply(one, f"replies[{at}]") for at, one in enumerate(replies))
    if len({one.id for one in found}) < len(found):
        raise DataError("two replies have the same id; name each once", field="replies")
    turns, tags = read_turns(_value(row, "prompt", list), "prompt", Notes()), _value(row, "tags", list, [])
    if not turns or not found:
        raise DataError("is empty", field="prompt" if not turns else "replies")
    if not all(isinstance(tag, str) for tag in tags):
        raise DataError(f"expected a list of texts, found {shown(tags)}", field="tags")
    return FeedbackItem(
        _value(row, "id", str),
        turns,
        found,
        _value(row, "category", str, ""),
        tuple(tags),
        _value(row, "round", int, 0),
        read_tools(row, Notes()),
        _value(row, "reference", str, "") or None,
        _value(row, "columns", dict, {}),
    )


def _reply(row: dict[str, Any], at: str) -> FeedbackReply:
    return FeedbackReply(
        _value(row, "id", str, at=at),
        _value(row, "reply", str, at=at),
        _value(row, "source", str, "", at=at),
        _value(row, "sampling", dict, {}, at=at),
        _value(row, "weights", str, "", at=at),
    )


def _value(row: dict[str, Any], name: str, kind: type, default: Any = None, at: str = "") -> Any:
    """What stands under a key; `default` where it is missing or null."""
    key = f"{at}.{name}" if at else name
    value = default if row.get(name) is None else row[name]
    if value is None:
        raise DataError(f"the field is missing; found {keys_of(row)}", field=key)
    if not isinstance(value, kind) or isinstance(value, bool):
        what = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}[kind]
        raise DataError(f"expected {what}, found {shown(value)}", field=key)
    return value
