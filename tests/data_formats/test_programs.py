"""Problems with tests, as they are published."""

import pytest

from data_formats import read
from data_formats.errors import DataError
from data_formats.records import Demonstration, Message, Prompt
from tests.align.commands.test_data import write

SHOWN = "Add.\nYour code should pass these tests:\n\nassert f(1) == 2\nassert f(2) == 3"
TESTS = ["assert f(1) == 2", "assert f(2) == 3"]
MBPP = {"text": "Add.", "code": "def f(x): return x + 1", "task_id": 1, "test_setup_code": "", "test_list": TESTS}
SANITIZED = {"prompt": "Add.", "code": "def f(x): return x + 1", "test_imports": [], "test_list": TESTS}
APPS = {"question": "Sum.", "starter_code": "def g():", "solutions": '["a", "b"]', "input_output": "{}"}
CONTEST = {
    "description": "Sum.",
    "public_tests": {"input": ["1"], "output": ["2"]},
    "solutions": {"language": [3, 1, 3], "solution": ["a", "x", "b"]},
}
HUMANEVAL = {
    "prompt": "def f():\n",
    "canonical_solution": "    return 1\n",
    "test": "def check(c): ...",
    "entry_point": "f",
}


def asked(text):
    return (Message("user", text),)


@pytest.mark.parametrize(
    ("row", "question", "codes", "column"),
    [
        (MBPP, SHOWN, [MBPP["code"]], "test_list"),
        (SANITIZED, SHOWN, [MBPP["code"]], "test_list"),
        (APPS, "Sum.\n\ndef g():", ["a", "b"], "input_output"),
        (CONTEST, "Sum.", ["a", "b"], "public_tests"),
        (HUMANEVAL, "def f():\n", ["    return 1\n"], "test"),
    ],
)
def test_problems_are_prompts_with_tests_and_demonstrations(row, question, codes, column, tmp_path):
    path = write(tmp_path / "rows.jsonl", row)
    (prompt,) = read(path, Prompt).records
    assert prompt.messages == asked(question) and prompt.columns[column] == row[column]
    found = [one.messages for one in read(path, Demonstration).records]
    assert found == [(*asked(question), Message("assistant", code)) for code in codes]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (MBPP | {"test_list": "x"}, "'test_list'.* expected a list of assertions"),
        (APPS | {"solutions": "["}, "'solutions'.* is no JSON"),
        (APPS | {"solutions": {}}, "'solutions'.* expected a list of programs"),
        (CONTEST | {"solutions": {"language": [3]}}, "'solutions'.* expected lists of languages"),
    ],
)
def test_malformed_problems(row, problem, tmp_path):
    with pytest.raises(DataError, match=problem):
        read(write(tmp_path / "rows.jsonl", row), Demonstration)
