"""Formats of prompts: one field with the question, or a conversation up to its last user turn."""

from __future__ import annotations

from typing import Any

from data_formats.context import asked, with_system
from data_formats.demonstrations import alpaca_prompt, instances
from data_formats.errors import DataError
from data_formats.formats import Dropped, Format, Notes, as_text, label, shown, source_of
from data_formats.records import Message, Prompt
from data_formats.tools import read_tools
from data_formats.turns import Turns, read_turns, repaired, without_flags

CATEGORY_FIELDS = ("category", "class", "dataset")
REFERENCE_FIELDS = ("reference", "std_answer", "ground_truth", "canonical_solution", "answer")


def prompt_of(row: dict[str, Any], messages: Turns, notes: Notes, reference: str | None = None) -> Prompt:
    """The record, with the first category field there is; a reference may be a string or a list (one a turn).

    One without text (a reply that is a call alone) is none.
    """
    named = next((field for field in CATEGORY_FIELDS if row.get(field) is not None), None)
    answer = next((field for field in REFERENCE_FIELDS if row.get(field)), None)
    if answer is not None:
        value = row[answer][0] if isinstance(row[answer], list) else row[answer]
        reference = as_text(value, answer, notes)
    return Prompt(
        messages, label(row, named, notes) if named else "", reference or None, source_of(row), read_tools(row, notes)
    )


def parse_prompt(row: dict[str, Any], notes: Notes) -> Prompt:
    """`prompt`: a string or turns ending with the user's (our own rows, ifeval)."""
    return prompt_of(row, asked(row, "prompt", notes), notes)


def parse_question(row: dict[str, Any], notes: Notes) -> Prompt:
    """`question`, a string (AlignBench, BELLE)."""
    return prompt_of(row, asked(row, "question", notes, as_text(row["question"], "question", notes)), notes)


def parse_instruction(row: dict[str, Any], notes: Notes) -> Prompt:
    """`instruction`, optionally `input`, `system`, `history` (Alpaca, AlpacaEval); an `output` is not a reference."""
    return prompt_of(row, alpaca_prompt(row, notes), notes)


def parse_first_turn(row: dict[str, Any], notes: Notes) -> Prompt:
    """`turns`: a list of user turns, of which the first is taken (MT-Bench, Vicuna)."""
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"expected a list of user turns, found {shown(turns)}", field="turns")
    if len(turns) > 1:
        notes["later turns left out"] += 1
    return prompt_of(row, asked(row, "turns[0]", notes, as_text(turns[0], "turns[0]", notes)), notes)


def _up_to_last_user_turn(turns: Turns, notes: Notes) -> tuple[Turns, str | None]:
    kept = repaired(turns, notes)
    if kept[-1].role in ("user", "tool"):
        return kept, None
    if len(kept) < 2:
        raise Dropped("no user turn")
    return kept[:-1], kept[-1].content


def parse_conversation(row: dict[str, Any], notes: Notes) -> Prompt:
    """`messages` or `conversations`; a reply at the end becomes the reference."""
    field = "messages" if "messages" in row else "conversations"
    turns = with_system(row, read_turns(row[field], field, notes), notes)
    messages, reference = _up_to_last_user_turn(without_flags(turns), notes)
    return prompt_of(row, messages, notes, reference)


def parse_turn_list(row: list[Any], notes: Notes) -> Prompt:
    """A bare list of texts, user first (MOSS-RLHF); a reply at the end is left out, and counted."""
    turns = tuple(
        Message("assistant" if at % 2 else "user", as_text(text, f"[{at}]", notes)) for at, text in enumerate(row)
    )
    messages, reply = _up_to_last_user_turn(turns, notes)
    if reply is not None:
        notes["reply at the end left out"] += 1
    return Prompt(messages)


def parse_self_instruct(row: dict[str, Any], notes: Notes) -> tuple[Prompt, ...]:
    """`instruction` and `instances`: one prompt an instance, its output the reference."""
    return tuple(prompt_of(row, prompt, notes, output) for prompt, output in instances(row, notes))


FORMATS = (
    Format("prompt", Prompt, frozenset({"prompt"}), parse_prompt),
    Format("question", Prompt, frozenset({"question"}), parse_question),
    Format("instruction", Prompt, frozenset({"instruction"}), parse_instruction),
    Format("self_instruct", Prompt, frozenset({"instruction", "instances"}), parse_self_instruct),
    Format("turns", Prompt, frozenset({"turns"}), parse_first_turn),
    Format("messages", Prompt, frozenset({"messages"}), parse_conversation),
    Format("sharegpt", Prompt, frozenset({"conversations"}), parse_conversation),
    Format("turn_list", Prompt, frozenset(), parse_turn_list, lambda row: isinstance(row, list)),
)
