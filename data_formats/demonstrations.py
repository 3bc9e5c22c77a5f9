"""Formats of demonstrations: messages (OpenAI, our own), ShareGPT, Alpaca, Self-Instruct, question and answer.

Of unpaired labelled replies (KTO) only the desirable ones are demonstrations; scored and ranked replies are none."""

from __future__ import annotations

from typing import Any

from data_formats.errors import DataError
from data_formats.formats import (
    EMPTY_REPLIES,
    Dropped,
    Format,
    Notes,
    as_text,
    label,
    optional_text,
    shown,
    source_of,
    text_field,
)
from data_formats.records import Demonstration, Message
from data_formats.tools import read_tools
from data_formats.turns import Turns, as_prompt, conversation, read_turns


def _demonstration(row: dict[str, Any], turns: Turns, notes: Notes) -> Demonstration:
    return Demonstration(
        conversation(turns, notes), label(row, "category", notes), source_of(row), read_tools(row, notes)
    )


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
    if not isinstance(history, list):
        raise DataError(f"expected a list of [user, reply], found {shown(history)}", field="history")
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


def parse_desirable(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`messages` and `label` (KTO): the desirable ones."""
    if not isinstance(row["label"], bool):
        raise DataError(f"expected true or false, found {shown(row['label'])}", field="label")
    if not row["label"]:
        raise Dropped("undesirable reply")
    return parse_messages(row, notes)


def instances(row: dict[str, Any], notes: Notes) -> list[tuple[str, str]]:
    """(prompt, output) of each of the `instances` of a Self-Instruct task (Wang et al. 2023); those of no text go."""
    raw = row["instances"]
    if not isinstance(raw, list) or not all(isinstance(instance, dict) for instance in raw):
        raise DataError(f"expected a list of objects, found {shown(raw)}", field="instances")
    pairs = []
    for instance in raw:
        asked = {"instruction": row["instruction"], "input": instance.get("input")}
        pairs.append((alpaca_prompt(asked, notes), text_field(instance, "output", notes)))
    kept = [(prompt, output) for prompt, output in pairs if prompt.strip() and output.strip()]
    notes[EMPTY_REPLIES] += len(pairs) - len(kept)
    if not kept:
        raise Dropped("empty reply")
    return kept


def parse_self_instruct(row: dict[str, Any], notes: Notes) -> tuple[Demonstration, ...]:
    """`instruction` and `instances`: [{input, output}]; one record an instance."""
    return tuple(
        _demonstration(row, (Message("user", prompt), Message("assistant", output)), notes)
        for prompt, output in instances(row, notes)
    )


def _asked(row: dict[str, Any], asked: str, answered: str, notes: Notes) -> Demonstration:
    reply = text_field(row, answered, notes)
    if not reply.strip():
        raise Dropped("empty reply")
    return _demonstration(row, (*as_prompt(row[asked], asked, notes), Message("assistant", reply)), notes)


def parse_question_answer(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`question` and `answer` (GSM8K)."""
    return _asked(row, "question", "answer", notes)


def parse_prompt_completion(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`prompt` and `completion`, a string (TRL)."""
    return _asked(row, "prompt", "completion", notes)


FORMATS = (
    Format("messages", Demonstration, frozenset({"messages"}), parse_messages),
    Format("sharegpt", Demonstration, frozenset({"conversations"}), parse_sharegpt),
    Format("alpaca", Demonstration, frozenset({"instruction", "output"}), parse_alpaca),
    Format("self_instruct", Demonstration, frozenset({"instruction", "instances"}), parse_self_instruct),
    Format("desirable", Demonstration, frozenset({"messages", "label"}), parse_desirable),
    Format("question_answer", Demonstration, frozenset({"question", "answer"}), parse_question_answer),
    Format("prompt_completion", Demonstration, frozenset({"prompt", "completion"}), parse_prompt_completion),
)
