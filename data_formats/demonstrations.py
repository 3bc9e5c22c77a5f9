"""Formats of demonstrations: messages (OpenAI, our own), ShareGPT, Alpaca."""

from __future__ import annotations

from typing import Any

from data_formats.errors import DataError
from data_formats.formats import Dropped, Format, Notes, as_text, label, optional_text, shown, source_of, text_field
from data_formats.records import Demonstration, Message
from data_formats.turns import Turns, conversation, read_turns


def _demonstration(row: dict[str, Any], turns: Turns, notes: Notes) -> Demonstration:
    return Demonstration(conversation(turns, notes), label(row, "category", notes), source_of(row))


def parse_messages(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`messages`: [{role, content}], content a string or text parts."""
    return _demonstration(row, read_turns(row["messages"], "messages", notes), notes)


def parse_sharegpt(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`conversations`: [{from, value}], and optionally `system`."""
    turns = read_turns(row["conversations"], "conversations", notes)
    system = optional_text(row, "system", notes)
    return _demonstration(row, (Message("system", system), *turns) if system else turns, notes)


def alpaca_prompt(row: dict[str, Any], notes: Notes) -> str:
    """`instruction`, then `input` on the next line when there is one (as LLaMA-Factory joins them)."""
    instruction, extra = text_field(row, "instruction", notes), optional_text(row, "input", notes)
    return f"{instruction}\n{extra}" if extra.strip() else instruction


def alpaca_history(row: dict[str, Any], notes: Notes) -> Turns:
    """`system` and `history` ([[user, reply], ...]), where LLaMA-Factory's Alpaca rows have them."""
    history = row.get("history") or []
    turns = [Message("system", optional_text(row, "system", notes))] if row.get("system") else []
    for at, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"expected [user, reply], found {shown(pair)}", field=f"history[{at}]")
        turns += [Message("user", as_text(pair[0], f"history[{at}][0]", notes))]
        turns += [Message("assistant", as_text(pair[1], f"history[{at}][1]", notes))]
    return tuple(turns)


def parse_alpaca(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`instruction`, `output`, optionally `input`, `system`, `history`."""
    reply = text_field(row, "output", notes)
    if not reply.strip():
        raise Dropped("empty reply")
    last = (Message("user", alpaca_prompt(row, notes)), Message("assistant", reply))
    return _demonstration(row, (*alpaca_history(row, notes), *last), notes)


FORMATS = (
    Format("messages", Demonstration, frozenset({"messages"}), parse_messages),
    Format("sharegpt", Demonstration, frozenset({"conversations"}), parse_sharegpt),
    Format("alpaca", Demonstration, frozenset({"instruction", "output"}), parse_alpaca),
)
