"""Replies that were sampled and kept: what a line of such a file holds, and reading it for whoever learns from them.

A line is a prompt with its replies, as a rejection stage (`rounds/<n>/samples.jsonl`), `align collect` (`items.jsonl`)
and ppo (`warmup/<n>.jsonl`) write them:

    {"prompt": [turns], "replies": [{"content", "stop", "tokens", "token_ids"}, …], "sampling": {…}, "weights"}

`stop` is `end` where the model ended the reply itself, `length` where it was cut, else `other`. `sampling` says how it
was drawn and `weights` from which weights (`align.models.identity`), of a row or of a reply. Only prompt and text must
be there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.runtime.json_files import json_lines, number
from data_formats.errors import DataError
from data_formats.formats import Notes, keys_of, shown
from data_formats.records import Message, Prompt
from data_formats.tools import read_tools
from data_formats.turns import read_turns

END, LENGTH, OTHER = "end", "length", "other"


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A reply as its file has it.

    Attributes:
        stop: "" where the file does not say it.
        tokens: how many it was sampled as, its end token included; None where the file does not say it.
        token_ids: them; empty likewise.
        sampling: how it was drawn, as of `SamplingParams.noted`, as far as the file says it.
        weights: what identifies the weights it was drawn from; "" where the file does not say it.
    """

    text: str
    stop: str
    tokens: int | None
    token_ids: tuple[int, ...]
    sampling: Mapping[str, Any]
    weights: str


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A prompt with its replies.

    Attributes:
        line: of `file`, from 1.
        iteration: of ppo, that they were sampled in; None for others.
    """

    file: Path
    line: int
    prompt: Prompt
    replies: tuple[StoredReply, ...]
    iteration: int | None

    def error(self, problem: str, reply: int | None = None) -> DataError:
        """What is wrong with it, or with one of its replies."""
        return DataError(problem, path=self.file, line=self.line, field=None if reply is None else f"replies[{reply}]")


def stop_of(finished: bool, tokens: int, most: int) -> str:
    """How a reply of so many tokens ended, where `most` were allowed."""
    return END if finished else LENGTH if tokens >= most else OTHER


def read_stored(file: Path) -> Iterator[StoredRow]:
    """The rows of a file, one after the other.

    Raises:
        DataError: it cannot be read, or a row has no prompt, no reply, or another kind of value; names the line.
    """

    def refuse(line: int, problem: str) -> None:
        raise DataError(problem, path=file, line=line)

    try:
        with open(file, encoding="utf-8", newline="\n") as lines:
            for line, value in json_lines(lines, refuse):
                try:
                    row = _row(value, file, line)
                except DataError as error:
                    raise DataError(error.problem, path=file, line=line, field=error.field) from None
                yield row
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", path=file) from error


def _row(row: Any, file: Path, line: int) -> StoredRow:
    if not isinstance(row, dict):
        raise DataError(f"expected a prompt with its replies, found {shown(row)}")
    asked, replies = row.get("prompt"), _value(row, "replies", list, required=True)
    if isinstance(asked, str):
        turns: tuple[Message, ...] = (Message("user", asked),) if asked else ()
    else:
        turns = read_turns(_value(row, "prompt", list, required=True), "prompt", Notes())
    if not turns or not replies:
        raise DataError("is empty", field="replies" if turns else "prompt")
    prompt = Prompt(
        turns,
        _value(row, "category", str) or "",
        _value(row, "reference", str),
        _value(row, "source", str) or "",
        read_tools(row, Notes()),
        _value(row, "columns", dict) or {},
    )
    found = tuple(_reply(one, row, at) for at, one in enumerate(replies))
    return StoredRow(file, line, prompt, found, _value(row, "iteration", int))


def _reply(reply: Any, row: dict[str, Any], at: int) -> StoredReply:
    where = f"replies[{at}]."
    if not isinstance(reply, dict):
        raise DataError(f"expected an object, found {shown(reply)}", field=where[:-1])
    name = "reply" if "reply" in reply and "content" not in reply else "content"
    ids = _value(reply, "token_ids", list, where) or []
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise DataError(f"expected token ids, found {shown(ids)}", field=f"{where}token_ids")
    sampling = _value(reply, "sampling", dict, where) or _value(row, "sampling", dict) or {}
    if not all(number(one) is not None for one in sampling.values()):
        raise DataError(f"expected an object of numbers, found {shown(sampling)}", field="sampling")
    stop = _value(reply, "stop", str, where) or ""
    if stop not in ("", END, LENGTH, OTHER):
        raise DataError(f"must be {END}, {LENGTH} or {OTHER}, not {shown(stop)}", field=f"{where}stop")
    return StoredReply(
        text=_value(reply, name, str, where, required=True),
        stop=stop,
        tokens=_value(reply, "tokens", int, where) or len(ids) or None,
        token_ids=tuple(ids),
        sampling=sampling,
        weights=_value(reply, "weights", str, where) or _value(row, "weights", str) or "",
    )


def _value(row: dict[str, Any], name: str, kind: type, where: str = "", required: bool = False) -> Any:
    """What stands under a key, None where it is missing or null and need not be there."""
    value = row.get(name)
    if value is None and required:
        raise DataError(f"the field is missing; found {keys_of(row)}", field=f"{where}{name}")
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        what = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}[kind]
        raise DataError(f"expected {what}, found {shown(value)}", field=f"{where}{name}")
    return value
