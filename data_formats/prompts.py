"""Formats of prompts: one field with the question, or a conversation up to its last user turn."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from data_formats.comparisons import prompt_of_pair
from data_formats.context import asked, with_system
from data_formats.demonstrations import alpaca_prompt, instances
from data_formats.errors import DataError
from data_formats.fields import NOTHING
from data_formats.formats import Dropped, Format, Notes, as_text, label, scalar_text, shown, source_of
from data_formats.rated import question_text, summary_prompt
from data_formats.records import Message, Prompt
from data_formats.tools import json_text, read_tools, turn_list
from data_formats.turns import Turns, prompt_turns, read_turns, repaired, without_flags
from data_formats.verdicts import text_list

CONVERSATIONS = ("messages", "conversations", "conversation")
CATEGORY_FIELDS = ("category", "class", "dataset")
REFERENCE_FIELDS = ("reference", "std_answer", "ground_truth", "canonical_solution", "answer", "solution")


def reference_text(value: Any, field: str, notes: Notes) -> str:
    """An answer as a text: a number as it is written, the first of several (of turns, or of right answers), or JSON.

    The whole of a list or object is a column of the prompt, for rewards that want it.
    """
    if isinstance(value, list) and value and not isinstance(value[0], dict | list):
        return reference_text(value[0], field, notes)
    if value is None:
        return ""
    return json_text(value, field, notes) if isinstance(value, dict | list) else scalar_text(value, field, notes)


def prompt_of(row: dict[str, Any], messages: Turns, notes: Notes, reference: str | None = None) -> Prompt:
    """The record, with the first category field there is; an empty reference (a reply that is a call alone) is none."""
    named = next((field for field in CATEGORY_FIELDS if row.get(field) is not None), None)
    answer = next((field for field in REFERENCE_FIELDS if row.get(field) not in NOTHING), None)
    if answer is not None:
        reference = reference_text(row[answer], answer, notes)
    return Prompt(
        messages, label(row, named, notes) if named else "", reference or None, source_of(row), read_tools(row, notes)
    )


def parse_prompt(row: dict[str, Any], notes: Notes) -> Prompt:
    """`prompt`: a string or turns ending with the user's (our own rows, ifeval).

    Of a preference row it is the prompt that both replies have, with the history that their turns begin with.
    """
    return prompt_of(row, prompt_of_pair(row, notes), notes)


def parse_question(row: dict[str, Any], notes: Notes) -> Prompt:
    """`question`, a string (AlignBench, BELLE) or {full_text} (WebGPT)."""
    return prompt_of(row, asked(row, "question", notes, question_text(row, notes)), notes)


def parse_asked(row: dict[str, Any], notes: Notes, field: str) -> Prompt:
    """`query`, `problem` or `input`: a string or turns."""
    return prompt_of(row, asked(row, field, notes), notes)


def parse_context(row: dict[str, Any], notes: Notes) -> Prompt:
    """`context`: the turns before two replies (HelpSteer 3)."""
    return prompt_of(
        row, prompt_turns(with_system(row, read_turns(row["context"], "context", notes), notes), notes), notes
    )


def parse_arena55k(row: dict[str, Any], notes: Notes) -> Prompt:
    """`prompt`: the user's turns, of which the first is taken, since the others answer replies (the arena's votes)."""
    texts = text_list(row, "prompt", notes)
    if not texts:
        raise Dropped("empty prompt")
    if len(texts) > 1:
        notes["later turns left out"] += 1
    return prompt_of(row, asked(row, "prompt", notes, texts[0]), notes)


def parse_summarised(row: dict[str, Any], notes: Notes) -> Prompt:
    """`info`: a post or article to summarise (OpenAI's summarize-from-feedback)."""
    return prompt_of(row, summary_prompt(row, notes), notes)


def parse_bfcl(row: dict[str, Any], notes: Notes) -> Prompt:
    """`question`: [[turns], ...], `function`: the tools on offer (BFCL); of several questions the first is taken."""
    questions = row["question"]
    if not isinstance(questions, list) or not questions:
        raise DataError(f"expected a list of lists of turns, found {shown(questions)}", field="question")
    if isinstance(questions[0], list):
        if len(questions) > 1:
            notes["later turns left out"] += 1
        questions = questions[0]
    functions = row["function"] if isinstance(row["function"], list) else [row["function"]]
    messages = prompt_turns(with_system(row, read_turns(questions, "question", notes), notes), notes)
    return replace(prompt_of(row, messages, notes), tools=read_tools({"tools": functions}, notes))


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


def up_to_last_user_turn(turns: Turns, notes: Notes) -> tuple[Turns, str | None]:
    kept = repaired(turns, notes)
    if kept[-1].role in ("user", "tool"):
        return kept, None
    if len(kept) < 2:
        raise Dropped("no user turn")
    return kept[:-1], kept[-1].content


def parse_conversation(row: dict[str, Any], notes: Notes) -> Prompt:
    """`messages`, `conversations` or `conversation`; a reply at the end becomes the reference.

    Where the row gives the reference itself it hangs on the last question, and no turn before it is cut.
    """
    field = next(name for name in CONVERSATIONS if name in row)
    turns = with_system(row, read_turns(row[field], field, notes), notes)
    if any(row.get(name) not in NOTHING for name in REFERENCE_FIELDS):
        while turns and turns[-1].role == "assistant":
            turns = turns[:-1]
        return prompt_of(row, prompt_turns(turns, notes), notes)
    messages, reference = up_to_last_user_turn(without_flags(turns), notes)
    return prompt_of(row, messages, notes, reference)


def parse_turn_list(row: list[Any], notes: Notes) -> Prompt:
    """A bare list of texts, user first (MOSS-RLHF); a reply at the end is left out, and counted."""
    turns = tuple(
        Message("assistant" if at % 2 else "user", as_text(text, f"[{at}]", notes)) for at, text in enumerate(row)
    )
    messages, reply = up_to_last_user_turn(turns, notes)
    if reply is not None:
        notes["reply at the end left out"] += 1
    return Prompt(messages)


def parse_self_instruct(row: dict[str, Any], notes: Notes) -> tuple[Prompt, ...]:
    """`instruction` and `instances`: one prompt an instance, its output the reference."""
    return tuple(prompt_of(row, prompt, notes, output) for prompt, output in instances(row, notes))


ASKED = ("query", "problem", "input")
_OLDER = {"prompt", "question", "instruction", "messages", "conversations"}


def _is_new(row: dict[str, Any]) -> bool:
    """Whether none of the names that were known before says what is asked."""
    return not _OLDER & row.keys()


def _is_first(row: dict[str, Any], field: str) -> bool:
    return _is_new(row) and next(name for name in ASKED if name in row) == field


def _is_to_summarise(row: dict[str, Any]) -> bool:
    return _is_new(row) and isinstance(row["info"], dict) and bool({"post", "article"} & row["info"].keys())


def _is_list(row: dict[str, Any]) -> bool:
    return isinstance(row["prompt"], list) or str(row["prompt"]).startswith("[")


FORMATS = (
    Format("prompt", Prompt, frozenset({"prompt"}), parse_prompt),
    Format("question", Prompt, frozenset({"question"}), parse_question),
    Format("instruction", Prompt, frozenset({"instruction"}), parse_instruction),
    Format("self_instruct", Prompt, frozenset({"instruction", "instances"}), parse_self_instruct),
    Format("turns", Prompt, frozenset({"turns"}), parse_first_turn, lambda row: isinstance(row["turns"], list)),
    Format("messages", Prompt, frozenset({"messages"}), parse_conversation),
    Format("sharegpt", Prompt, frozenset({"conversations"}), parse_conversation),
    Format("conversation", Prompt, frozenset({"conversation"}), parse_conversation, _is_new),
    *(
        Format(field, Prompt, frozenset({field}), partial(parse_asked, field=field), partial(_is_first, field=field))
        for field in ASKED
    ),
    Format(
        "context",
        Prompt,
        frozenset({"context"}),
        parse_context,
        lambda row: _is_new(row) and turn_list(row["context"]) is not None,
    ),
    Format("summarised", Prompt, frozenset({"info"}), parse_summarised, _is_to_summarise),
    Format(
        "bfcl", Prompt, frozenset({"question", "function"}), parse_bfcl, lambda row: isinstance(row["question"], list)
    ),
    Format("arena55k", Prompt, frozenset({"prompt", "winner_tie"}), parse_arena55k, _is_list),
    Format("turn_list", Prompt, frozenset(), parse_turn_list, lambda row: isinstance(row, list)),
)
