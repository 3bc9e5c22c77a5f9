"""Formats of comparisons: two replies to one prompt, the better one known."""

from __future__ import annotations

import re
from typing import Any

from data_formats.demonstrations import alpaca_prompt
from data_formats.errors import DataError
from data_formats.formats import (
    Dropped,
    Format,
    Notes,
    label,
    optional_number,
    optional_text,
    shown,
    source_of,
    text_field,
)
from data_formats.records import Comparison, Message
from data_formats.tools import read_tools
from data_formats.turns import Turns, as_prompt, prompt_turns, read_turn, read_turns

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_TIES = (0, 1.5)


def _comparison(
    row: dict[str, Any], prompt: Turns, chosen: str, rejected: str, notes: Notes, grade: float | None = None
) -> Comparison:
    if not chosen.strip() or not rejected.strip():
        raise Dropped("empty reply")
    if chosen.strip() == rejected.strip():
        raise Dropped("identical replies")
    tags = row.get("tags") or ()
    if not isinstance(tags, list | tuple) or not all(isinstance(tag, str) for tag in tags):
        raise DataError(f"expected a list of strings, found {shown(tags)}", field="tags")
    return Comparison(
        prompt,
        chosen,
        rejected,
        grade=optional_number(row, "grade") if grade is None else grade,
        category=label(row, "category", notes),
        source=source_of(row),
        tags=tuple(tags),
        tools=read_tools(row, notes),
    )


def _reply(value: Any, field: str, notes: Notes) -> str:
    """A reply written as a string or as one assistant turn."""
    if isinstance(value, str):
        return text_field({field: value}, field, notes)
    turn = read_turn(value, field, notes)
    if turn.role != "assistant":
        raise DataError(f"the reply is by the {turn.role}, expected the assistant", field=field)
    return _plain(turn)


def _plain(turn: Message) -> str:
    """The text of a reply to compare, which is no call: a compared reply is text."""
    if turn.tool_calls:
        raise Dropped("reply is a tool call")
    return turn.content


def _split_reply(turns: Turns) -> tuple[Turns, str]:
    """A conversation -> what comes before the last reply, and that reply."""
    if not turns or turns[-1].role != "assistant":
        raise Dropped("ends without reply")
    return turns[:-1], _plain(turns[-1])


def _from_conversations(row: dict[str, Any], chosen: Turns, rejected: Turns, notes: Notes) -> Comparison:
    """Two full conversations that differ in the last reply alone."""
    prompt, good = _split_reply(chosen)
    other, bad = _split_reply(rejected)
    if prompt != other:
        raise Dropped("prompts differ")
    return _comparison(row, prompt_turns(prompt, notes), good, bad, notes)


def parse_preference(row: dict[str, Any], notes: Notes) -> Comparison:
    """`prompt` (string or turns), `chosen` and `rejected` (string, one turn, or turns with or without the prompt)."""
    prompt = as_prompt(row["prompt"], "prompt", notes)
    replies = []
    for field in ("chosen", "rejected"):
        if isinstance(row[field], list):
            before, reply = _split_reply(read_turns(row[field], field, notes))
            if before and prompt_turns(before, notes)[-len(prompt) :] != prompt:
                raise Dropped("prompts differ")
            replies.append(reply)
        else:
            replies.append(_reply(row[field], field, notes))
    return _comparison(row, prompt, replies[0], replies[1], notes)


def parse_ranking(row: dict[str, Any], notes: Notes) -> Comparison:
    """`conversations` (the prompt), `chosen` and `rejected` as {from, value} or string (LLaMA-Factory, MedicalGPT)."""
    turns = read_turns(row["conversations"], "conversations", notes)
    system = optional_text(row, "system", notes)
    prompt = prompt_turns((Message("system", system), *turns) if system else turns, notes)
    return _comparison(
        row, prompt, _reply(row["chosen"], "chosen", notes), _reply(row["rejected"], "rejected", notes), notes
    )


def parse_conversation_pair(row: dict[str, Any], notes: Notes) -> Comparison:
    """`chosen` and `rejected`, or `chosen_messages` and `rejected_messages`: lists of turns, the prompt included."""
    fields = ("chosen", "rejected") if "chosen" in row else ("chosen_messages", "rejected_messages")
    chosen, rejected = (read_turns(row[field], field, notes) for field in fields)
    return _from_conversations(row, chosen, rejected, notes)


def hh_turns(text: str, field: str) -> Turns:
    """An HH transcript ("\\n\\nHuman: ...\\n\\nAssistant: ...", Bai et al. 2022) -> turns without outer white space."""
    parts = _SPEAKER.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise DataError(f"expected a transcript that starts with 'Human:', found {shown(text[:60])}", field=field)
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], said.strip()) for who, said in zip(parts[1::2], parts[2::2], strict=True))


def parse_hh(row: dict[str, Any], notes: Notes) -> Comparison:
    """`chosen` and `rejected` as HH transcripts."""
    chosen = hh_turns(text_field(row, "chosen", notes), "chosen")
    rejected = hh_turns(text_field(row, "rejected", notes), "rejected")
    return _from_conversations(row, chosen, rejected, notes)


def parse_stack_exchange_paired(row: dict[str, Any], notes: Notes) -> Comparison:
    """`question`, `response_j` (better), `response_k` (worse)."""
    prompt = as_prompt(text_field(row, "question", notes), "question", notes)
    return _comparison(row, prompt, text_field(row, "response_j", notes), text_field(row, "response_k", notes), notes)


def parse_alpacaeval(row: dict[str, Any], notes: Notes) -> Comparison:
    """`instruction`, `output_1`, `output_2`, `preference`.

    A preference is 1 or 2 (the better output), or between them: 2 - p(output 1 is better), and the grade is then the
    probability that the chosen one is better. 0, 1.5 and null are ties and dropped.
    """
    preference = optional_number(row, "preference")
    first, second = text_field(row, "output_1", notes), text_field(row, "output_2", notes)
    if preference is None or preference in _TIES:
        raise Dropped("tie")
    if not 1 <= preference <= 2:
        raise DataError(f"expected a number from 1 to 2, or 0 for a tie, found {preference}", field="preference")
    grade = None if preference in (1, 2) else max(2 - preference, preference - 1)
    chosen, rejected = (first, second) if preference < 1.5 else (second, first)
    prompt = as_prompt(alpaca_prompt(row, notes), "instruction", notes)
    return _comparison(row, prompt, chosen, rejected, notes, grade=grade)


def parse_arena(row: dict[str, Any], notes: Notes) -> Comparison:
    """`conversation_a`, `conversation_b` and `winner` (LMSYS arena, MT-bench judgments); any tie is dropped."""
    winner = text_field(row, "winner", notes)
    if winner.startswith("tie"):
        raise Dropped("tie")
    if winner not in ("model_a", "model_b"):
        raise DataError(f"expected model_a, model_b or tie, found {shown(winner)}", field="winner")
    a, b = (read_turns(row[field], field, notes) for field in ("conversation_a", "conversation_b"))
    chosen, rejected = (a, b) if winner == "model_a" else (b, a)
    return _from_conversations(row, chosen, rejected, notes)


def _both(kind: type, *fields: str) -> Any:
    return lambda row: all(isinstance(row.get(field), kind) for field in fields)


def _is_hh(row: dict[str, Any]) -> bool:
    return all(isinstance(row[field], str) and _SPEAKER.match(row[field]) for field in ("chosen", "rejected"))


_PAIR = frozenset({"chosen", "rejected"})
FORMATS = (
    Format("preference", Comparison, _PAIR | {"prompt"}, parse_preference),
    Format("ranking", Comparison, _PAIR | {"conversations"}, parse_ranking),
    Format("hh", Comparison, _PAIR, parse_hh, _is_hh),
    Format("conversation_pair", Comparison, _PAIR, parse_conversation_pair, _both(list, "chosen", "rejected")),
    Format("messages_pair", Comparison, frozenset({"chosen_messages", "rejected_messages"}), parse_conversation_pair),
    Format(
        "stack_exchange_paired",
        Comparison,
        frozenset({"question", "response_j", "response_k"}),
        parse_stack_exchange_paired,
    ),
    Format("arena", Comparison, frozenset({"conversation_a", "conversation_b", "winner"}), parse_arena),
    Format(
        "alpacaeval", Comparison, frozenset({"instruction", "output_1", "output_2", "preference"}), parse_alpacaeval
    ),
)
