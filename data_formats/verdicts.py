"""Formats of two replies and a verdict: which of them is better, by whatever names people write it.

HelpSteer 2 and 3, JudgeBench, PPE, the arena's 55k votes, PKU-SafeRLHF, and any row with a prompt, two replies named
alike (`response_1`, `response_2`) and one field that says which is better. A verdict must name its reply beyond doubt:
1 is `response_1` where the replies are numbered so, and is refused where they are called a and b.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from typing import Any

from data_formats.comparisons import comparison_of, diverging
from data_formats.context import with_system
from data_formats.demonstrations import question_turns
from data_formats.errors import DataError
from data_formats.formats import Dropped, Format, Notes, as_text, flag, shown
from data_formats.records import Comparison, Message
from data_formats.turns import Turns, as_prompt, prompt_turns, read_turn, read_turns

REPLIES = ("response", "answer", "output", "completion", "reply", "generation", "candidate", "assistant")
_NUMBERED = ((("_0", "0"), ("_1", "1")), (("_1", "1"), ("_2", "2")), (("_a", "_A"), ("_b", "_B")))
PAIRS = tuple(
    (f"{name}{first}", f"{name}{second}")
    for name in REPLIES
    for (firsts, seconds) in _NUMBERED
    for first, second in zip(firsts, seconds, strict=True)
)
QUESTIONS = (
    "prompt",
    "question",
    "query",
    "instruction",
    "problem",
    "messages",
    "conversation",
    "conversations",
    "context",
)
# Fields whose number is a strength: below 0 the first reply is better, above 0 the second (HelpSteer 2 and 3).
STRENGTHS = ("overall_preference", "preference_strength")
VERDICTS = (
    *STRENGTHS,
    "preference",
    "preferred",
    "preferred_response",
    "winner",
    "label",
    "verdict",
    "choice",
    "better",
)
_TIES = ("tie", "both", "bothbad", "equal", "same", "draw", "neither", "none", "a=b", "b=a", "=", "c")
_PLACES = {"first": 0, "left": 0, "second": 1, "right": 1}
_WORDS = re.compile(rf"model|option|side|{'|'.join(REPLIES)}|[\s_\-\[\]().'\"]")
_BELOW_ZERO = re.compile(r"-\s*\d.*")  # the sign of a comparison, which names no reply
_MORE = re.compile(r"(\w+)\s*([<>])[<>]?\s*(\w+)")


def pair_of(row: dict[str, Any]) -> tuple[str, str] | None:
    """The names of the two replies, where there are exactly two."""
    found = [pair for pair in PAIRS if pair[0] in row and pair[1] in row]
    return found[0] if len(found) == 1 else None


def question_of(row: dict[str, Any]) -> str | None:
    return next((name for name in QUESTIONS if row.get(name) is not None), None)


def _fits(row: dict[str, Any]) -> bool:
    return pair_of(row) is not None and any(name in row for name in QUESTIONS)


def _named(text: str, names: tuple[str, str]) -> int | None:
    """Which of two replies a word names: 0, 1, or None for neither."""
    plain = _WORDS.sub("", text.casefold())
    ends = [name[-1].casefold() for name in names]
    if plain in _PLACES:
        return _PLACES[plain]
    if plain in ends:
        return ends.index(plain)
    return ("a", "b").index(plain) if plain in ("a", "b") else None


def names_one_of_two(text: str, names: tuple[str, str]) -> bool:
    """Whether a text is a verdict about two replies, a tie included."""
    try:
        better_of(text, "", names)
    except Dropped:
        return bool(text)
    except DataError:
        return False
    return True


def better_of(value: Any, field: str, names: tuple[str, str]) -> int:
    """Which of two replies a verdict says is better: 0 the first, 1 the second.

    Raises:
        Dropped: neither, or there is no verdict.
        DataError: it does not say which.
    """
    if value is None or value == "":
        raise Dropped("no verdict")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = shown(value)
    if isinstance(value, str):
        text = value.casefold().strip()
        if re.sub(r"[\s_\-\[\]().:]", "", text) in _TIES or text.startswith("tie"):
            raise Dropped("tie")
        more = _MORE.fullmatch(text.strip("[] "))
        found = _named(more[1] if more and more[2] == ">" else more[3] if more else text, names)
        if found is not None and not _BELOW_ZERO.fullmatch(text):
            return found
    raise DataError(
        f"{shown(value)} names neither {names[0]} nor {names[1]}; write one of these names, or 'tie'", field=field
    )


def strength_of(value: Any, field: str) -> tuple[int, float]:
    """Which reply is better and by how much.

    Raises:
        Dropped: neither, or there is no verdict.
        DataError: no number.
    """
    if value is None or value == "":
        raise Dropped("no verdict")
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not abs(number) < 1e300:
        raise DataError(
            f"expected a number, below 0 where the first reply is better, found {shown(value)}", field=field
        )
    if number == 0:
        raise Dropped("tie")
    return int(number > 0), abs(number)


def prompt_under(row: dict[str, Any], field: str, notes: Notes) -> Turns:
    value = row[field]
    if field == "context":  # here the conversation itself
        return prompt_turns(with_system(row, as_prompt(value, field, notes), notes), notes)
    if field in ("messages", "conversation", "conversations"):
        return prompt_turns(with_system(row, read_turns(value, field, notes), notes), notes)
    return question_turns(row, field, notes)


def _reply(row: dict[str, Any], field: str, notes: Notes) -> Message:
    """A reply as a string, one turn, or a list of one turn."""
    value = row[field]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return Message("assistant", as_text(value, field, notes))
    turn = read_turn(value, field, notes)
    if turn.role != "assistant":
        raise DataError(f"the reply is by the {turn.role}, expected the assistant", field=field)
    return turn


def parse_judged(row: dict[str, Any], notes: Notes, field: str) -> Comparison:
    """A prompt, two replies (`response_1`, `response_2`) and a verdict (HelpSteer 3, JudgeBench, PPE, PKU-SafeRLHF)."""
    names, question = pair_of(row), question_of(row)
    if names is None or question is None:
        problem = "expected a prompt and two replies such as response_1 and response_2 beside this verdict"
        raise DataError(problem, field=field)
    grade = None
    if field in STRENGTHS:
        better, grade = strength_of(row[field], field)
    else:
        better = better_of(row[field], field, names)
    replies = [_reply(row, name, notes) for name in names]
    prompt = prompt_under(row, question, notes)
    made = comparison_of(row, prompt, replies[better], replies[1 - better], notes, grade=grade)
    return replace(made, tags=(*made.tags, *_safety(row, better)))


def _safety(row: dict[str, Any], better: int) -> tuple[str, ...]:
    """What PKU-SafeRLHF says of the safety of both replies."""
    said = [row.get(f"is_response_{at}_safe") for at in (better, 1 - better)]
    if not all(isinstance(safe, bool) for safe in said):
        return ()
    return tuple(
        f"{side}_{'safe' if safe else 'unsafe'}" for side, safe in zip(("chosen", "rejected"), said, strict=True)
    )


def text_list(row: dict[str, Any], field: str, notes: Notes) -> list[str]:
    """A list of texts, or the JSON text of one, as the arena's votes write turns; a turn that is null is empty."""
    value = row[field]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"expected the JSON text of a list ({error}), found {shown(row[field])}", field=field
            ) from None
    if not isinstance(value, list):
        raise DataError(f"expected a list of texts, found {shown(value)}", field=field)
    return ["" if text is None else as_text(text, f"{field}[{at}]", notes) for at, text in enumerate(value)]


def parse_arena55k(row: dict[str, Any], notes: Notes) -> Comparison:
    """`prompt`, `response_a`, `response_b`: lists of one text a turn; `winner_model_a`, `winner_model_b`: 0 or 1."""
    asked_, *sides = (text_list(row, field, notes) for field in ("prompt", "response_a", "response_b"))
    if not asked_ or any(len(side) != len(asked_) for side in sides):
        raise Dropped("not a reply to every turn")
    wins = [flag(row, f"winner_model_{side}") for side in "ab"]
    row.get("winner_tie")
    if wins[0] == wins[1]:
        raise Dropped("tie")
    said = [
        tuple(
            Message(role, text)
            for pair in zip(asked_, side, strict=True)
            for role, text in zip(("user", "assistant"), pair, strict=True)
        )
        for side in (sides if wins[0] else sides[::-1])
    ]
    prompt = with_system(row, (said[0][0],), notes)
    return diverging(row, prompt_turns(prompt, notes), said[0][1:], said[1][1:], notes)


def _is_pku(row: dict[str, Any]) -> bool:
    return pair_of(row) == ("response_0", "response_1")


def _names_chosen(row: dict[str, Any]) -> bool:
    return _fits(row) and "rejected" not in row


_PKU = frozenset({"prompt", "response_0", "response_1"})
_ARENA = frozenset({"prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"})
FORMATS = (
    Format(
        "pku", Comparison, _PKU | {"better_response_id"}, partial(parse_judged, field="better_response_id"), _is_pku
    ),
    Format(
        "pku_safer",
        Comparison,
        _PKU - {"prompt"} | {"safer_response_id"},
        partial(parse_judged, field="safer_response_id"),
        _fits,
    ),
    Format("arena55k", Comparison, _ARENA, parse_arena55k),
    *(
        Format(f"by_{field}", Comparison, frozenset({field}), partial(parse_judged, field=field), _fits)
        for field in VERDICTS
    ),
    Format("by_chosen", Comparison, frozenset({"chosen"}), partial(parse_judged, field="chosen"), _names_chosen),
)
