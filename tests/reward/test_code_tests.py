"""Which code of a reply is meant, and which tests of a row."""

import json

import pytest

from data_formats.records import Message
from reward.code_tests import CodeTests, TestsError, code_of, prefix_of, read_tests
from reward.protocol import Sample


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("x = 1", "x = 1"),
        ("First:\n```python\na\n```\nthen\n```py\nb\n```\nend", "b\n"),
        ("```python\na\n```\nwhich prints\n```\n3\n```", "a\n"),  # a named block before one without a name
        ("```\na\n```\nand\n```\nb\n```", "b\n"),
        ("```bash\nls\n```", "```bash\nls\n```"),  # no Python at all: the whole
        ("```python\na\nb", "a\nb"),  # cut at the length limit
        ("````python\n```\na\n```\n````", "```\na\n```\n"),
        ("~~~Python3\na\n~~~", "a\n"),
        ("  ```python\n  a\n  ```", "  a\n"),
    ],
)
def test_the_code_of_a_reply(reply, code):
    assert code_of(reply) == code


def test_the_beginning_that_a_prompt_gives():
    def asked(text):
        return prefix_of(Sample((Message("user", text),), ""), "f")

    assert asked("import math\n\ndef f(x):\n    '''Doc'''\n") == "import math\n\ndef f(x):\n    '''Doc'''\n"
    assert asked("Complete:\n```python\ndef f(x):\n```\nwell") == "def f(x):\n"
    assert asked("Write a function f(x).") == "" and asked("def f2(x):\n") == ""


PAIRS = {"inputs": ["1 2\n"], "outputs": ["3\n"]}


@pytest.mark.parametrize(
    ("columns", "tests"),
    [
        ({"reference": "x", "test": "", "tests": []}, None),
        ({"test": "def check(c): ...", "entry_point": "f"}, CodeTests(check="def check(c): ...", function="f")),
        ({"test_list": ["assert f(1)"]}, CodeTests(asserts=["assert f(1)"])),
        ({"test_list": '["assert f(1)"]'}, CodeTests(asserts=["assert f(1)"])),
        (
            {"test_list": ["assert f(1)"], "test_imports": ["import math"], "test_setup_code": "a = 1"},
            CodeTests(asserts=["assert f(1)"], helpers=["import math"], setup="a = 1"),
        ),
        ({"input_output": PAIRS}, CodeTests(pairs=[("1 2\n", "3\n")])),
        ({"input_output": json.dumps(PAIRS)}, CodeTests(pairs=[("1 2\n", "3\n")])),
        ({"input_output": {"inputs": [["1", "2"]], "outputs": [["3"]]}}, CodeTests(pairs=[("1\n2", "3")])),
        (
            {"input_output": {"fn_name": "g", "inputs": [[1, 2]], "outputs": [3]}},
            CodeTests(function="g", pairs=[([1, 2], 3)]),
        ),
        ({"input_output": {"inputs": [], "outputs": []}}, None),
        (
            {"public_tests": {"input": ["1"], "output": ["2"]}, "private_tests": {"input": [], "output": []}},
            CodeTests(pairs=[("1", "2")]),
        ),
        ({"tests": ["assert f(1)"]}, CodeTests(asserts=["assert f(1)"])),
        ({"tests": [{"input": "1", "output": "2"}]}, CodeTests(pairs=[("1", "2")])),
    ],
)
def test_the_tests_of_a_row(columns, tests):
    assert read_tests(columns) == tests


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"test": 3, "entry_point": "f"}, "'test' must be a text, not a int"),
        ({"test_list": [1]}, "'test_list' must be a list of texts"),
        ({"input_output": "{"}, "'input_output' is no JSON"),
        ({"input_output": {"inputs": ["1"]}}, "as many 'inputs' as 'outputs'"),
        ({"input_output": {"fn_name": "f", "inputs": ["1"], "outputs": [1]}}, "no lists of arguments"),
        ({"public_tests": {"input": ["1"], "output": []}}, "'public_tests' must have 'input' and 'output'"),
        ({"tests": [{"input": 1, "output": "2"}]}, "'tests' must have 'input' and 'output'"),
        ({"tests": {"a": 1}}, "'tests' must be a list of texts"),
    ],
)
def test_tests_that_cannot_be_read(columns, problem):
    with pytest.raises(TestsError, match=problem):
        read_tests(columns)
