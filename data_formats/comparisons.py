"""Formats of comparisons: two replies to one prompt, the better one known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from data_formats.context import asked, with_system
from data_formats.demonstrations import alpaca_prompt, question_turns
from data_formats.errors import DataError
from data_formats.fields import NOTHING
from data_formats.formats import (
    Dropped,
    Format,
    Notes,
    as_text,
    label,
    optional_number,
    shown,
    source_of,
    tags_of,
    text_field,
)
from data_formats.loss import drop_without_loss
from data_formats.records import Comparison, Message
from data_formats.tools import read_tools, turn_list
from data_formats.transcripts import hh, reply_after, starts_as_transcript
from data_formats.turns import Turns, prompt_turns, read_turn, read_turns, without_flags

_TIES = (0, 1.5)


def same(first: Message, second: Message) -> bool:
    """Whether two replies say and think the same."""
    return (first.content.strip(), first.reasoning.strip()) == (second.content.strip(), second.reasoning.strip())


def comparison_of(
    row: dict[str, Any],
    prompt: Turns,
    chosen: Message,
    rejected: Message,
    notes: Notes,
    grade: float | None = None,
    between: tuple[Turns, Turns] = ((), ()),
) -> Comparison:
    """The record, with what else the row says.

    Args:
        grade: in the place of the row's own.
        between: `chosen_turns` and `rejected_turns`.

    Raises:
        Dropped: a reply is a call, says nothing, or says what the other says.
    """
    if chosen.tool_calls or rejected.tool_calls:
        raise Dropped("reply is a tool call")  # a compared reply is text
    if not chosen.content.strip() or not rejected.content.strip():
        raise Dropped("empty reply")
    if same(chosen, rejected) and between[0] == between[1]:
        raise Dropped("identical replies")
    tags = tags_of(row)
    if not tags and (said := row.get("tags")):
        raise DataError(f"expected a list of strings, found {shown(said)}", field="tags")
    drop_without_loss(row)
    number = str(row.get("round"))  # from CSV files it is text
    provenance = row.get("provenance")
    return Comparison(
        prompt,
        chosen.content,
        rejected.content,
        grade=optional_number(row, "grade") if grade is None else grade,
        category=label(row, "category", notes),
        source=source_of(row),
        tags=tags,
        tools=read_tools(row, notes),
        chosen_reasoning=chosen.reasoning,
        rejected_reasoning=rejected.reasoning,
        chosen_turns=between[0],
        rejected_turns=between[1],
        round=int(number) if number.isdecimal() and len(number) < 10 else None,
        provenance=provenance if isinstance(provenance, dict) else None,
    )


def _side(value: Any, field: str, notes: Notes) -> Turns:
    """A side of a pair: a string, one assistant turn, or turns (or their JSON text, or an HH transcript) up to a reply.

    Raises:
        Dropped: it does not end with a reply.
    """
    if isinstance(value, list) or turn_list(value) is not None:
        said = read_turns(value, field, notes)
    elif isinstance(value, str):
        text = as_text(value, field, notes)
        said = (hh(text) if text.startswith("\n\nHuman:") else ()) or (Message("assistant", text),)
    elif not isinstance(value, dict):
        raise DataError(f"expected a reply as a string, a turn or turns, found {shown(value)}", field=field)
    else:
        said = (read_turn(value, field, notes),)
        if said[0].role != "assistant":
            raise DataError(f"the reply is by the {said[0].role}, expected the assistant", field=field)
    if not said or said[-1].role != "assistant":
        raise Dropped("ends without reply")
    return without_flags(said)


def from_conversations(row: dict[str, Any], chosen: Turns, rejected: Turns, notes: Notes) -> Comparison:
    """Two full conversations that differ in the last reply alone."""
    if chosen[:-1] != rejected[:-1]:
        raise Dropped("prompts differ")
    prompt = prompt_turns(with_system(row, chosen[:-1], notes), notes)
    return comparison_of(row, prompt, chosen[-1], rejected[-1], notes)


def diverging(
    row: dict[str, Any], prompt: Turns, chosen: Turns, rejected: Turns, notes: Notes, grade: float | None = None
) -> Comparison:
    """Two conversations that part at the first reply to `prompt`, in which the user says the same.

    Raises:
        Dropped: the user says different things, a turn is empty, or see `comparison_of`.
    """
    befores = [prompt_turns((*prompt, *side[:-1]), notes)[len(prompt) :] for side in (chosen, rejected)]
    users = [[turn.content for turn in before if turn.role == "user"] for before in befores]
    if users[0] != users[1]:
        raise Dropped("prompts differ")
    equal = (first == second for first, second in zip(*befores, strict=False))
    common = next((at for at, same_ in enumerate(equal) if not same_), min(map(len, befores)))
    while common and befores[0][common - 1].role == "assistant":
        common -= 1  # a reply that both have belongs to the prompt with what was said to it
    between = (befores[0][common:], befores[1][common:])
    return comparison_of(row, (*prompt, *befores[0][:common]), chosen[-1], rejected[-1], notes, grade, between)


def _reconciled(prompt: Turns, before: Turns, notes: Notes) -> Turns:
    """The whole of what comes before the replies.

    Args:
        prompt: what the row gives as its prompt: all of it, its last turn, or its first (UltraFeedback's pairs).
        before: the turns of a side before its reply; those that begin with a reply go on from the prompt.

    Raises:
        Dropped: they are not of one conversation.
    """
    goes_on = before[:1] and before[0].role in ("assistant", "tool")
    before = before if goes_on or not before else prompt_turns(before, notes)
    (own, asked_), (other, further) = _parted(prompt), _parted(before)
    if own and other and _said(own) != _said(other):
        raise Dropped("prompts differ")
    if goes_on:
        whole = (*asked_, *further)
    elif _ends_with(asked_, further):
        whole = asked_
    elif _said(further[: len(asked_)]) == _said(asked_) or _ends_with(further, asked_):
        whole = further
    else:
        raise Dropped("prompts differ")
    return prompt_turns((*(other or own), *whole), notes)


def _parted(turns: Turns) -> tuple[Turns, Turns]:
    """The system turn, where there is one, and the others."""
    own = 1 if turns[:1] and turns[0].role == "system" else 0
    return turns[:own], turns[own:]


def _said(turns: Turns) -> list[tuple[str, str]]:
    return [(turn.role, turn.content.strip()) for turn in turns]


def _ends_with(turns: Turns, end: Turns) -> bool:
    return len(end) <= len(turns) and _said(turns[len(turns) - len(end) :]) == _said(end)


def parse_preference(row: dict[str, Any], notes: Notes) -> Comparison:
    """`prompt` (string or turns), `chosen` and `rejected` (string, one turn, or turns with or without the prompt).

    Where nothing stands under `prompt`, it is what both sides begin with.
    """
    if row["prompt"] in NOTHING and _both(list, "chosen", "rejected")(row):
        return parse_conversation_pair(row, notes)
    return _preferred(row, asked(row, "prompt", notes), row["prompt"], notes)


def parse_asked_preference(row: dict[str, Any], notes: Notes, field: str) -> Comparison:
    """`instruction` (with `input`), `question`, `query` … in the place of `prompt` (LLaMA-Factory, Orca DPO)."""
    return _preferred(row, question_turns(row, field, notes), row[field], notes)


def _preferred(row: dict[str, Any], prompt: Turns, written: Any, notes: Notes) -> Comparison:
    """`chosen` over `rejected`; `written`: the prompt as it stands in the row."""
    sides = [_side(row[field], field, notes) for field in ("chosen", "rejected")]
    sides = [(*side[:-1], replace(side[-1], content=reply_after(written, side[-1].content))) for side in sides]
    if _part_at_once(sides):
        return diverging(row, prompt, sides[0], sides[1], notes)
    return comparison_of(row, _whole_prompt(prompt, sides, notes), sides[0][-1], sides[1][-1], notes)


def _part_at_once(sides: list[Turns]) -> bool:
    """Whether both sides go on from the prompt with a reply, and with different ones."""
    return all(len(side) > 1 and side[0].role == "assistant" for side in sides) and sides[0][:-1] != sides[1][:-1]


def _whole_prompt(prompt: Turns, sides: list[Turns], notes: Notes) -> Turns:
    """The prompt with the history that the sides begin with.

    Raises:
        Dropped: it is not the same for both.
    """
    befores = [side[:-1] for side in sides if len(side) > 1]
    wholes = [_reconciled(prompt, before, notes) for before in befores] or [prompt]
    alone = len(befores) == 1 and befores[0][0].role != "user" and befores[0][0].role != "system"
    if alone or any(whole != wholes[0] for whole in wholes):
        raise Dropped("prompts differ")
    return wholes[0]


def prompt_of_pair(row: dict[str, Any], notes: Notes) -> Turns:
    """What stands under `prompt`; where `chosen` and `rejected` are turns, with the history that they begin with.

    Raises:
        Dropped: their histories differ, or see `context.asked`.
    """
    prompt, fields = asked(row, "prompt", notes), ("chosen", "rejected")
    if any(turn_list(dict.get(row, field)) is None for field in fields):
        return prompt
    sides = [_side(dict.get(row, field), field, notes) for field in fields]
    return prompt if _part_at_once(sides) else _whole_prompt(prompt, sides, notes)


def parse_ranking(row: dict[str, Any], notes: Notes) -> Comparison:
    """`conversations` (the prompt), `chosen` and `rejected` as {from, value} or string (LLaMA-Factory, MedicalGPT)."""
    turns = read_turns(row["conversations"], "conversations", notes)
    prompt = prompt_turns(with_system(row, turns, notes), notes)
    chosen, rejected = (_side(row[field], field, notes) for field in ("chosen", "rejected"))
    if len(chosen) > 1 or len(rejected) > 1:
        raise Dropped("prompts differ")
    return comparison_of(row, prompt, chosen[-1], rejected[-1], notes)


def parse_conversation_pair(row: dict[str, Any], notes: Notes) -> Comparison:
    """`chosen` and `rejected`, or `chosen_messages` and `rejected_messages`: lists of turns, the prompt included."""
    fields = ("chosen", "rejected") if "chosen" in row else ("chosen_messages", "rejected_messages")
    chosen, rejected = (_side(row[field], field, notes) for field in fields)
    return from_conversations(row, chosen, rejected, notes)


def parse_hh(row: dict[str, Any], notes: Notes) -> Comparison:
    """`chosen` and `rejected` as HH transcripts."""
    chosen, rejected = (_hh(row, field, notes) for field in ("chosen", "rejected"))
    return from_conversations(row, chosen, rejected, notes)


def _hh(row: dict[str, Any], field: str, notes: Notes) -> Turns:
    turns = hh_turns(text_field(row, field, notes), field)
    if turns[-1].role != "assistant":
        raise Dropped("ends without reply")
    return turns


def hh_turns(text: str, field: str) -> Turns:
    """An HH transcript ("\\n\\nHuman: ...\\n\\nAssistant: ...", Bai et al. 2022) -> turns without outer white space."""
    turns = hh(text)
    if not turns:
        raise DataError(f"expected a transcript that starts with 'Human:', found {shown(text)}", field=field)
    return turns


def parse_stack_exchange_paired(row: dict[str, Any], notes: Notes) -> Comparison:
    """`question`, `response_j` (better), `response_k` (worse)."""
    better, worse = (Message("assistant", text_field(row, field, notes)) for field in ("response_j", "response_k"))
    return comparison_of(row, asked(row, "question", notes), better, worse, notes)


def parse_alpacaeval(row: dict[str, Any], notes: Notes) -> Comparison:
    """`instruction`, `output_1`, `output_2`, `preference`.

    A preference is 1 or 2 (the better output), or between them: 2 - p(output 1 is better), and the grade is then the
    probability that the chosen one is better. 0, 1.5 and null are ties and dropped.
    """
    preference = optional_number(row, "preference")
    first, second = (Message("assistant", text_field(row, field, notes)) for field in ("output_1", "output_2"))
    if preference is None or preference in _TIES:
        raise Dropped("tie")
    if not 1 <= preference <= 2:
        raise DataError(f"expected a number from 1 to 2, or 0 for a tie, found {preference}", field="preference")
    grade = None if preference in (1, 2) else max(2 - preference, preference - 1)
    chosen, rejected = (first, second) if preference < 1.5 else (second, first)
    return comparison_of(row, alpaca_prompt(row, notes), chosen, rejected, notes, grade=grade)


def parse_arena(row: dict[str, Any], notes: Notes) -> Comparison:
    """`conversation_a`, `conversation_b`, `winner` and `turn` (LMSYS arena, MT-bench judgments); any tie is dropped."""
    winner = text_field(row, "winner", notes)
    if winner.startswith("tie"):
        raise Dropped("tie")
    if winner not in ("model_a", "model_b"):
        raise DataError(f"expected model_a, model_b or tie, found {shown(winner)}", field="winner")
    a, b = (exchanges(row, field, notes) for field in ("conversation_a", "conversation_b"))
    chosen, rejected = (a, b) if winner == "model_a" else (b, a)
    start = 1 + next((at for at, turn in enumerate(chosen) if turn.role == "user"), 0)
    if chosen[:start] != rejected[:start]:
        raise Dropped("prompts differ")
    prompt = prompt_turns(with_system(row, chosen[:start], notes), notes)
    return diverging(row, prompt, chosen[start:], rejected[start:], notes)


def exchanges(row: dict[str, Any], field: str, notes: Notes) -> Turns:
    """A conversation up to the reply to the user's turn number `turn`, which MT-bench's judgments are about.

    Raises:
        Dropped: it has no reply there.
    """
    said, last = _side(row[field], field, notes), row.get("turn")
    asked_ = [at for at, turn in enumerate(said) if turn.role == "user"]
    if isinstance(last, int) and 0 < last < len(asked_):
        said = said[: asked_[last]]
    if len(said) < 2 or said[-1].role != "assistant":
        raise Dropped("ends without reply")
    return said


def _both(kind: type, *fields: str) -> Any:
    return lambda row: all(isinstance(row.get(field), kind) for field in fields)


def _is_hh(row: dict[str, Any]) -> bool:
    return all(isinstance(row[field], str) and starts_as_transcript(row[field]) for field in ("chosen", "rejected"))


def is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def is_best_of(row: dict[str, Any]) -> bool:
    """Whether a side holds several replies, each a text; a list of turns is one reply."""
    sides = [row.get(field) for field in ("chosen", "rejected")]
    return any(is_list_of_texts(side) for side in sides) and all(
        isinstance(side, str) or is_list_of_texts(side) for side in sides
    )


def _is_asked(row: dict[str, Any]) -> bool:
    return _is_instructed(row) and "instruction" not in row and sum(name in row for name in ASKED) == 1


def _is_instructed(row: dict[str, Any]) -> bool:
    return not is_best_of(row) and not {"prompt", "conversations"} & row.keys()


ASKED = ("question", "query", "problem", "input")
_PAIR = frozenset({"chosen", "rejected"})
FORMATS = (
    Format("preference", Comparison, _PAIR | {"prompt"}, parse_preference, lambda row: not is_best_of(row)),
    *(
        Format(f"{field}_preference", Comparison, _PAIR | {field}, partial(parse_asked_preference, field=field), fits)
        for field, fits in (("instruction", _is_instructed), *((name, _is_asked) for name in ASKED))
    ),
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
