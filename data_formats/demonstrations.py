"""Formats of demonstrations: messages (OpenAI, our own), ShareGPT, Alpaca, Self-Instruct, question and answer.

Of unpaired labelled replies (KTO) only the desirable ones are demonstrations; scored and ranked replies are none."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from data_formats.context import asked, judged, with_system
from data_formats.errors import DataError
from data_formats.fields import objects
from data_formats.formats import (
    EMPTY_REPLIES,
    Dropped,
    Format,
    Notes,
    flag,
    label,
    optional_text,
    source_of,
    tags_of,
    text_field,
)
from data_formats.loss import WITHOUT_LOSS, drop_without_loss
from data_formats.records import Demonstration, Message
from data_formats.tools import read_tools, turn_list
from data_formats.transcripts import reply_after
from data_formats.turns import Turns, conversation, read_turns, reasoning_of


def demonstration_of(row: dict[str, Any], turns: Turns, notes: Notes) -> Demonstration:
    """The record; `turns` are whole, with what the row says before them."""
    kept, about = conversation(turns, notes), (label(row, "category", notes), source_of(row), read_tools(row, notes))
    tags = tags_of(row)
    drop_without_loss(row)
    if not any(turn.loss for turn in kept if turn.role == "assistant"):
        raise Dropped(WITHOUT_LOSS)
    return Demonstration(kept, *about, tags)


def parse_messages(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`messages`: [{role, content}], content a string or text parts, and optionally `system`."""
    return demonstration_of(row, with_system(row, read_turns(row["messages"], "messages", notes), notes), notes)


def parse_sharegpt(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`conversations`: [{from, value}], and optionally `system`."""
    turns = read_turns(row["conversations"], "conversations", notes)
    return demonstration_of(row, with_system(row, turns, notes), notes)


def alpaca_text(row: dict[str, Any], notes: Notes) -> str:
    """`instruction`, then `input` on the next line when there is one (as LLaMA-Factory joins them)."""
    instruction, extra = text_field(row, "instruction", notes), optional_text(row, "input", notes)
    return f"{instruction}\n{extra}" if extra.strip() else instruction


def alpaca_prompt(row: dict[str, Any], notes: Notes) -> Turns:
    """`alpaca_text`, and what the row says around it (`system`, `history` …)."""
    text = alpaca_text(row, notes)
    if not text.strip():
        raise Dropped("empty turn")
    return asked(row, "instruction", notes, text)


def question_turns(row: dict[str, Any], field: str, notes: Notes) -> Turns:
    """What is asked under `field`, with what the row says around it; an `instruction` has its `input`."""
    return alpaca_prompt(row, notes) if field == "instruction" else asked(row, field, notes)


def answered(row: dict[str, Any], prompt: Turns, field: str, notes: Notes) -> Demonstration:
    """The prompt and the reply under `field`, with what the row says was thought before it."""
    reply = reply_after(dict.get(row, "prompt"), text_field(row, field, notes))  # `prompt` may be another field
    if not reply.strip():
        raise Dropped("empty reply")
    thought = reasoning_of(row, "", notes)
    return demonstration_of(row, (*prompt, Message("assistant", reply, thought)), notes)


def parse_alpaca(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`instruction`, `output`, optionally `input`, `system`, `history`."""
    return answered(row, alpaca_prompt(row, notes), "output", notes)


def parse_desirable(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`messages` and `label` (KTO): the desirable ones."""
    if not flag(row, "label"):
        raise Dropped("undesirable reply")
    prompt, reply = judged(row, "messages", notes)
    return demonstration_of(row, (*prompt, reply), notes)


def instances(row: dict[str, Any], notes: Notes) -> list[tuple[Turns, str]]:
    """(prompt, output) of each of the `instances` of a Self-Instruct task (Wang et al. 2023); those of no text go."""
    kept, instruction = [], row["instruction"]
    for number, instance in enumerate(objects(row, "instances", notes)):
        text = alpaca_text({"instruction": instruction, "input": instance.get("input")}, notes)
        output = text_field(instance, "output", notes)
        if text.strip() and output.strip():
            kept.append((asked(row, f"instances[{number}]", notes, text), output))
        else:
            notes[EMPTY_REPLIES] += 1
    if not kept:
        raise Dropped("empty reply")
    return kept


def parse_self_instruct(row: dict[str, Any], notes: Notes) -> tuple[Demonstration, ...]:
    """`instruction` and `instances`: [{input, output}]; one record an instance."""
    return tuple(
        demonstration_of(row, (*prompt, Message("assistant", output)), notes)
        for prompt, output in instances(row, notes)
    )


def parse_question_answer(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`question` and `answer` (GSM8K), optionally `context` to answer from."""
    return answered(row, asked(row, "question", notes), "answer", notes)


def parse_exchange(row: dict[str, Any], notes: Notes, question: str, answer: str) -> Demonstration:
    """What is asked and what is answered (OpenOrca, MetaMathQA, NuminaMath), optionally `system_prompt`, `history` …"""
    return answered(row, question_turns(row, question, notes), answer, notes)


def parse_prompt_completion(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`prompt` and `completion`, each a string or turns (TRL); the completion alone is trained on."""
    completion, prompt = row["completion"], asked(row, "prompt", notes)
    before = tuple(replace(turn, loss=False) if turn.role == "assistant" else turn for turn in prompt)
    if turn_list(completion) is None and not isinstance(completion, dict):
        return answered(row, before, "completion", notes)
    turns = read_turns([completion] if isinstance(completion, dict) else completion, "completion", notes)
    if turns[0].role != "assistant":
        raise DataError(f"the completion begins with the {turns[0].role}, expected the assistant", field="completion")
    return demonstration_of(row, (*before, *turns), notes)


def parse_safe(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`prompt`, `response` and `is_safe` (BeaverTails): the safe ones."""
    if not flag(row, "is_safe"):
        raise Dropped("unsafe reply")
    return answered(row, asked(row, "prompt", notes), "response", notes)


def parse_conversation(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`conversation`: turns (LMSYS-Chat, WildChat) or exchanges such as {input, output} (Capybara)."""
    turns = read_turns(row["conversation"], "conversation", notes)
    return demonstration_of(row, with_system(row, turns, notes), notes)


# Names under which people ask and answer. Where a row also has a format that was known before, that one is meant.
EXCHANGES = (
    ("question", "response"),
    ("query", "response"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("problem", "solution"),
    ("question", "solution"),
    ("problem", "generated_solution"),
    ("query", "answer"),
    ("input", "output"),
)
_OLDER = ({"messages"}, {"conversations"}, {"instruction", "output"}, {"question", "answer"}, {"prompt", "completion"})
_RATED = {"helpfulness", "is_safe"}  # a reply that may be a bad one


def is_unclaimed(row: dict[str, Any]) -> bool:
    """Whether a row has the fields of no format that was known before those of other names."""
    return not any(needs <= row.keys() for needs in _OLDER)


def _is_exchange(row: dict[str, Any]) -> bool:
    return is_unclaimed(row) and not _RATED & row.keys()


FORMATS = (
    Format("messages", Demonstration, frozenset({"messages"}), parse_messages),
    Format("sharegpt", Demonstration, frozenset({"conversations"}), parse_sharegpt),
    Format("alpaca", Demonstration, frozenset({"instruction", "output"}), parse_alpaca),
    Format("self_instruct", Demonstration, frozenset({"instruction", "instances"}), parse_self_instruct),
    Format("desirable", Demonstration, frozenset({"messages", "label"}), parse_desirable),
    Format("question_answer", Demonstration, frozenset({"question", "answer"}), parse_question_answer),
    Format("prompt_completion", Demonstration, frozenset({"prompt", "completion"}), parse_prompt_completion),
    *(
        Format(
            f"{question}_{answer}",
            Demonstration,
            frozenset({question, answer}),
            partial(parse_exchange, question=question, answer=answer),
            _is_exchange,
        )
        for question, answer in EXCHANGES
    ),
    Format("safe", Demonstration, frozenset({"prompt", "response", "is_safe"}), parse_safe),
    Format("conversation", Demonstration, frozenset({"conversation"}), parse_conversation, is_unclaimed),
)
