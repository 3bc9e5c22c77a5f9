"""Formats of problems that a program solves, with its tests: HumanEval, MBPP, APPS and TACO, CodeContests.

The tests stay the row's further fields, for a reward that runs them (`kind: tests`) and for `align data verify`.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from data_formats.context import asked
from data_formats.demonstrations import demonstration_of
from data_formats.errors import DataError
from data_formats.formats import Dropped, Format, Notes, as_text, shown, text_field
from data_formats.records import Demonstration, Message, Prompt
from data_formats.turns import Turns

PYTHON = 3  # what CodeContests calls Python 3


def _demonstration(row: dict[str, Any], prompt: Turns, code: str, notes: Notes) -> Demonstration:
    if not code.strip():
        raise Dropped("empty reply")
    return demonstration_of(row, (*prompt, Message("assistant", code)), notes)


def parse_humaneval(row: dict[str, Any], notes: Notes) -> Demonstration:
    """`prompt`, the beginning of a program, and `canonical_solution`, which goes on with it (HumanEval)."""
    return _demonstration(row, asked(row, "prompt", notes), text_field(row, "canonical_solution", notes), notes)


def mbpp_turns(row: dict[str, Any], notes: Notes, field: str) -> Turns:
    """The task and its tests, which alone say what the function is called (Austin et al. 2021)."""
    tests = row["test_list"]
    if not isinstance(tests, list) or not tests:
        raise DataError(f"expected a list of assertions, found {shown(tests)}", field="test_list")
    lines = [as_text(test, f"test_list[{at}]", notes) for at, test in enumerate(tests)]
    text = f"{text_field(row, field, notes)}\nYour code should pass these tests:\n\n" + "\n".join(lines)
    return asked(row, field, notes, text)


def parse_mbpp(row: dict[str, Any], notes: Notes, field: str) -> Demonstration:
    """`text` (`prompt` in the sanitized set), `code` and `test_list` (MBPP)."""
    return _demonstration(row, mbpp_turns(row, notes, field), text_field(row, "code", notes), notes)


def parse_mbpp_prompt(row: dict[str, Any], notes: Notes, field: str) -> Prompt:
    """`text` (`prompt` in the sanitized set) and `test_list` (MBPP); `code` is the reference."""
    return Prompt(mbpp_turns(row, notes, field), reference=text_field(row, "code", notes) or None)


def apps_turns(row: dict[str, Any], notes: Notes) -> Turns:
    """The question, and the code to begin with where there is some."""
    begin = as_text(row["starter_code"], "starter_code", notes) if row["starter_code"] is not None else ""
    question = text_field(row, "question", notes)
    return asked(row, "question", notes, f"{question}\n\n{begin}" if begin.strip() else question)


def parse_apps(row: dict[str, Any], notes: Notes) -> tuple[Demonstration, ...]:
    """`question`, `starter_code` and `solutions`, a list or the JSON of one (APPS, TACO); one record a solution."""
    solutions = row["solutions"]
    if isinstance(solutions, str):
        try:
            solutions = json.loads(solutions or "[]")
        except (ValueError, RecursionError) as error:
            raise DataError(f"is no JSON ({error})", field="solutions") from error
    if not isinstance(solutions, list):
        raise DataError(f"expected a list of programs, found {shown(solutions)}", field="solutions")
    return _solved(row, apps_turns(row, notes), solutions, notes)


def parse_apps_prompt(row: dict[str, Any], notes: Notes) -> Prompt:
    """`question` and `starter_code` (APPS, TACO)."""
    return Prompt(apps_turns(row, notes))


def parse_contest(row: dict[str, Any], notes: Notes) -> tuple[Demonstration, ...]:
    """`description` and `solutions`: {language, solution} (CodeContests); one record a solution in Python 3."""
    solutions = row["solutions"]
    languages, codes = (solutions.get(name) for name in ("language", "solution"))
    if not isinstance(languages, list) or not isinstance(codes, list) or len(languages) != len(codes):
        raise DataError(f"expected lists of languages and solutions, found {shown(solutions)}", field="solutions")
    chosen = [code for language, code in zip(languages, codes, strict=True) if language == PYTHON]
    return _solved(row, asked(row, "description", notes), chosen, notes)


def parse_contest_prompt(row: dict[str, Any], notes: Notes) -> Prompt:
    """`description` and `public_tests` (CodeContests)."""
    return Prompt(asked(row, "description", notes))


def _solved(row: dict[str, Any], prompt: Turns, codes: list[Any], notes: Notes) -> tuple[Demonstration, ...]:
    texts = [as_text(code, f"solutions[{at}]", notes) for at, code in enumerate(codes)]
    found = tuple(_demonstration(row, prompt, text, notes) for text in texts if text.strip())
    if not found:
        raise Dropped("no solution")
    return found


def _has_tests(row: dict[str, Any]) -> bool:
    return "test_list" in row


def _has_public_tests(row: dict[str, Any]) -> bool:
    return "public_tests" in row


def _is_contest(row: dict[str, Any]) -> bool:
    return isinstance(row["solutions"], dict)


FORMATS = (
    Format("humaneval", Demonstration, frozenset({"prompt", "canonical_solution"}), parse_humaneval),
    Format("mbpp", Demonstration, frozenset({"text", "code"}), partial(parse_mbpp, field="text"), _has_tests),
    Format(
        "mbpp_sanitized", Demonstration, frozenset({"prompt", "code"}), partial(parse_mbpp, field="prompt"), _has_tests
    ),
    Format("apps", Demonstration, frozenset({"question", "starter_code", "solutions"}), parse_apps),
    Format("code_contests", Demonstration, frozenset({"description", "solutions"}), parse_contest, _is_contest),
    Format("mbpp", Prompt, frozenset({"text", "code"}), partial(parse_mbpp_prompt, field="text"), _has_tests),
    Format(
        "mbpp_sanitized", Prompt, frozenset({"prompt", "code"}), partial(parse_mbpp_prompt, field="prompt"), _has_tests
    ),
    Format("apps", Prompt, frozenset({"question", "starter_code"}), parse_apps_prompt),
    Format("code_contests", Prompt, frozenset({"description"}), parse_contest_prompt, _has_public_tests),
)
