"""Tests as rows of data have them, and the code in a reply: from a sample to what a sandbox runs.

A row says its tests by the names under which they are published:

    test, entry_point      HumanEval: `check(candidate)`; the reply goes on with the prompt's function or defines it
    test_list              MBPP: assertions; `test_imports` and `test_setup_code`: what they import, what stands before
    input_output           APPS, TACO: {inputs, outputs} of standard input and output, or with `fn_name` of a function's
                           arguments and value; as an object or as JSON
    public_tests, private_tests, generated_tests
                           CodeContests: {input, output} of standard input and output
    tests                  a list of assertions, or of {input, output}

The code of a reply is its last fenced block of Python (```python, ```py, else one without a name; to the end where it
is not closed), else the whole reply. Nothing here runs or parses code: that is done in the sandbox.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from reward.protocol import Sample
from reward.sandbox.start import Job

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^\s`{]*)")
PYTHON = ("python", "py", "python3", "python-repl")
TEST_FIELDS = ("test", "entry_point", "test_list", "test_imports", "test_setup_code", "input_output")
TEST_FIELDS += ("public_tests", "private_tests", "generated_tests", "tests")
PRINTED = ("public_tests", "private_tests", "generated_tests")


class TestsError(ValueError):
    """Tests that cannot be read; says which field."""

    __test__ = False  # no test of pytest's


@dataclass(frozen=True, slots=True)
class CodeTests:
    """The tests of a row, of one kind.

    Attributes:
        check: source that defines `check(candidate)`, of the function called `function`.
        asserts: one source a test.
        pairs: (standard input, expected output), or (arguments, expected value) of `function`.
        helpers: sources that tests need and the row gives, run on the tests' side.
        setup: source that runs before each of `asserts`; may use the reply's names.
    """

    check: str = ""
    function: str = ""
    asserts: list[str] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] | None = None
    helpers: list[str] = field(default_factory=list)
    setup: str = ""

    def job(self, sample: Sample, stop: bool) -> Job | None:
        """What a sandbox is to run for a reply; None where it has no code.

        Args:
            stop: after the first test that fails.
        """
        code = code_of(sample.completion)
        if not code.strip():
            return None
        prefix = prefix_of(sample, self.function) if self.check else ""
        whole = self.pairs is not None and not self.function
        program = {"code": code, "prefix": prefix, "entry_point": self.function, "run": whole}
        return Job(program, asdict(self) | {"stop": stop, "prefix": prefix})


def code_of(reply: str) -> str:
    """The code in a reply."""
    found = list(_blocks(reply))
    named = [code for name, code in found if name.lower() in PYTHON]
    plain = [code for name, code in found if not name]
    return (named or plain or [reply])[-1]


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Name and content of each fenced block."""
    mark, name, lines = "", "", []
    for line in text.splitlines(keepends=True):
        match = FENCE.match(line)
        if not mark and match:
            (mark, name), lines = match.groups(), []
        elif mark and match and match[1].startswith(mark) and not line.strip().strip(mark[0]):
            yield name, "".join(lines)
            mark = ""
        elif mark:
            lines.append(line)
    if mark:
        yield name, "".join(lines)


def prefix_of(sample: Sample, function: str) -> str:
    """The beginning of the program that the prompt gives: its code where that defines `function`."""
    asked = sample.prompt[-1].content if sample.prompt else ""
    defines = re.compile(rf"^(async )?def {re.escape(function)}\b", re.MULTILINE)
    candidates = [*(code for _, code in _blocks(asked)), asked]
    return next((code.rstrip() + "\n" for code in candidates if defines.search(code)), "")


def read_tests(columns: Mapping[str, Any]) -> CodeTests | None:
    """The tests in a prompt's columns; None where there are none.

    Raises:
        TestsError: there is something that cannot be read as such.
    """
    if _there(columns, "test") and _there(columns, "entry_point"):
        return CodeTests(check=_text(columns, "test"), function=_text(columns, "entry_point"))
    if _there(columns, "test_list"):
        setup = _text(columns, "test_setup_code") if _there(columns, "test_setup_code") else ""
        imports = "\n".join(_texts(columns, "test_imports")) if _there(columns, "test_imports") else ""
        return CodeTests(asserts=_texts(columns, "test_list"), helpers=[imports] if imports else [], setup=setup)
    if _there(columns, "input_output"):
        return _input_output(columns["input_output"])
    if any(_there(columns, name) for name in PRINTED):
        pairs = [pair for name in PRINTED if _there(columns, name) for pair in _printed(columns[name], name)]
        return CodeTests(pairs=pairs) if pairs else None
    if _there(columns, "tests"):
        value = columns["tests"]
        if isinstance(value, list) and all(isinstance(one, dict) for one in value):
            pairs = [pair for one in value for pair in _printed(one, "tests")]
            return CodeTests(pairs=pairs) if pairs else None
        return CodeTests(asserts=_texts(columns, "tests"))
    return None


def _there(columns: Mapping[str, Any], name: str) -> bool:
    return columns.get(name) not in (None, "", [], {}, "{}")


def _text(columns: Mapping[str, Any], name: str) -> str:
    if not isinstance(columns[name], str):
        raise TestsError(f"'{name}' must be a text, not a {type(columns[name]).__name__}")
    return columns[name]


def _texts(columns: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts, also as the JSON of one (as CSV files have it)."""
    value = columns[name]
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _json(value, name)
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TestsError(f"'{name}' must be a list of texts")
    return value


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TestsError(f"'{name}' is no JSON ({error})") from error


def _input_output(value: Any) -> CodeTests | None:
    value = _json(value, "input_output") if isinstance(value, str) else value
    lists = [value.get(name) for name in ("inputs", "outputs")] if isinstance(value, dict) else []
    if not lists or not all(isinstance(one, list) for one in lists) or len(lists[0]) != len(lists[1]):
        raise TestsError("'input_output' must have as many 'inputs' as 'outputs'")
    if not lists[0]:
        return None
    function = value.get("fn_name") or ""
    if function and not all(isinstance(arguments, list) for arguments in lists[0]):
        raise TestsError("'input_output' has an 'fn_name', and 'inputs' that are no lists of arguments")
    pairs = list(zip(*lists, strict=True))
    return CodeTests(function=function, pairs=pairs if function else [(_lines(a), _lines(b)) for a, b in pairs])


def _lines(value: Any) -> str:
    """A text, or a list of its lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _printed(value: Any, name: str) -> list[tuple[str, str]]:
    """(input, output) of an object that has one of each, or lists of both."""
    found = [value.get(key) for key in ("input", "output")] if isinstance(value, dict) else [None]
    if all(isinstance(one, list) for one in found) and len(found[0]) == len(found[1]):
        return [(str(a), str(b)) for a, b in zip(*found, strict=True)]
    if any(not isinstance(one, str) for one in found):
        raise TestsError(f"'{name}' must have 'input' and 'output', texts or lists of as many texts")
    return [(found[0], found[1])]
