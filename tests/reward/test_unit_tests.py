"""A reply's code against the tests of its row: what passes, and why the rest does not."""

import json
import socket
from pathlib import Path

import pytest

from data_formats.records import Message
from reward.protocol import RewardError, RewardUnavailableError, Sample, judge
from reward.sandbox.judge import judge as run_tests
from reward.sandbox.judge import same_output
from reward.sandbox.reply import sources
from reward.sandbox.start import Budget
from reward.sandbox.wire import decoded, encoded
from reward.unit_tests import REASONS, TestsResult, UnitTests, result_of
from tests.sandboxes import BUDGET, NOTHING, require

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "real" / "6_checkable" / "humaneval.jsonl"


def sample(reply, prompt="Write it.", **columns):
    return Sample((Message("user", prompt),), reply, columns=columns)


def results(*samples, partial=True, **budget):
    return UnitTests(partial=partial, budget=Budget(**(BUDGET | budget))).results(list(samples))


ADD = "def add(a, b):\n    '''Their sum.'''\n"
CHECK = "def check(candidate):\n    x = 2\n    assert candidate(1, x) == 3\n    assert candidate(2, 2) == 4\n"
HUMANEVAL = {"prompt": ADD, "test": CHECK, "entry_point": "add"}
INPUTS = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
SCRIPT = "a, b = map(int, input().split())\nprint(a + b)\nif __name__ == '__main__':\n    exit()\n"
CASES = {  # reply, columns -> passed, total, reason
    "a fenced function": (sample("So:\n```python\ndef add(a, b):\n    return a + b\n```", **HUMANEVAL), 2, 2, ""),
    "a completion": (sample("    return a + b\n", **HUMANEVAL), 2, 2, ""),
    "one whose first blanks are lost": (sample("c = a\n    return c + b", **HUMANEVAL), 2, 2, ""),
    "one that talks on": (sample("    return a + b\n\nThis adds them.", **HUMANEVAL), 2, 2, ""),
    "a wrong function": (sample("    return a + 2", **HUMANEVAL), 2, 2, ""),  # wrong, and right on these tests
    "half right": (sample("    return 3", **HUMANEVAL), 1, 2, "wrong"),
    "no function": (sample("I do not know.", **HUMANEVAL), 0, 2, "syntax_error"),
    "nothing": (sample(" ", **HUMANEVAL), 0, 1, "no_code"),
    "asserts": (sample("def f(x):\n    return -x", tests=["assert f(1) == -1", "assert f(2) == 2"]), 1, 2, "wrong"),
    "a function named as one of Python's": (
        sample("def sum(a, b):\n    return a + b", test_list=["assert sum(1, 2) == 3"]),
        *(1, 1, ""),
    ),
    "Python's own stay": (  # the reply cannot say what abs is
        sample("def abs(x): return 0\ndef f(x): return 9", test_list=["assert abs(f(1) - 1) < 0.1"]),
        *(0, 1, "wrong"),
    ),
    "imports and setup": (
        sample(
            "class Node:\n    def __init__(self, v):\n        self.v, self.next = v, None\n"
            "def length(n):\n    return 0 if n is None else 1 + length(n.next)",
            test_list=["assert length(n) == math.floor(2.5)", "n.next.next = Node(3)\nassert length(n) == 3"],
            test_imports=["import math"],
            test_setup_code="n = Node(1)\nn.next = Node(2)",
        ),
        *(2, 2, ""),
    ),
    "plain data both ways": (
        sample(
            "def f(*a, **k):\n    return a, k",
            tests=[
                "assert f([1], {2: {3}}, b'x', 1j, 2**99, n=None) == (([1], {2: {3}}, b'x', 1j, 2**99), {'n': None})"
            ],
        ),
        *(1, 1, ""),
    ),
    "a list that is changed": (
        sample("def f(x):\n    x.sort()", tests=["a = [2, 1]\nf(a)\nassert a == [1, 2]"]),
        1,
        1,
        "",
    ),
    "a function that is handed over": (
        sample("def f(g, xs):\n    return [g(x) for x in xs]", tests=["assert f(lambda x: x * 2, [1, 2]) == [2, 4]"]),
        *(1, 1, ""),
    ),
    "a generator, a class": (
        sample(
            "def f(n):\n    yield from range(n)\nclass Solution:\n    def two(self, x):\n        return 2 * x",
            tests=["assert list(f(3)) == [0, 1, 2]", "assert Solution().two(4) == 8", "assert two(3) == 6"],
        ),
        *(3, 3, ""),
    ),
    "exceptions": (
        sample(
            "def f(x):\n    raise ValueError('no')",
            tests=["try:\n    f(1)\nexcept Exception as error:\n    assert 'no' in str(error)", "assert f(1)"],
        ),
        *(1, 2, "exception"),
    ),
    "a broken module": (sample("import nothing_like_it", tests=["assert f(1)"]), 0, 1, "exception"),
    "one test leaves nothing for the next": (
        sample("n = 0\ndef f():\n    global n\n    n += 1\n    return n", tests=["assert f() == 1"] * 2),
        *(2, 2, ""),
    ),
    "input and output": (sample(SCRIPT, input_output=INPUTS), 2, 2, ""),
    "wrong output": (sample("print(3)", input_output=INPUTS), 1, 2, "wrong"),
    "a function of APPS": (
        sample(
            "def g(a, b):\n    return (a, b)", input_output={"fn_name": "g", "inputs": [[1, 2]], "outputs": [[1, 2]]}
        ),
        *(1, 1, ""),
    ),
    "words that cannot be written": (sample("raise ValueError('\\ud800')", tests=["assert f()"]), 0, 1, "exception"),
    "a module that the test does not import": (
        sample(
            "class math:\n    isclose = lambda *a: True\nf = lambda x: 7", tests=["assert math.isclose(f(2), 7)"] * 2
        ),
        *(2, 2, ""),
    ),
    "memory": (sample("def f():\n    return len('x' * 10**9)", tests=["assert f()"]), 0, 1, "memory"),
    "tests that cannot be run": (sample("x = 1", tests=["assert f("]), 0, 1, "broken_test"),
    "tests without what they import": (
        sample("x = 1", test_list=["x"], test_imports=["import nowhere"]),
        0,
        1,
        "broken_test",
    ),
}


def test_what_comes_of_replies():
    require()
    found = dict(zip(CASES, results(*(case[0] for case in CASES.values())), strict=True))
    told = {name: (one.passed, one.total, one.reason) for name, one in found.items()}
    assert told == {name: tuple(case[1:]) for name, case in CASES.items()}
    assert found["exceptions"].why == "ValueError: no"
    assert found["words that cannot be written"].why == "ValueError: ?"


def test_scores_and_reasons_of_a_reward():
    require()
    right, half, broken = (sample(reply, **HUMANEVAL) for reply in ("    return a + b", "    return 3", "("))
    budget = Budget(**BUDGET)
    verdict = judge(UnitTests(missing=0.25, budget=budget), [right, half, broken, sample("x = 1")])
    assert verdict.scores == [1.0, 0.0, 0.0, 0.25] and list(verdict.parts) == list(REASONS)
    assert verdict.parts["wrong"] == [0, 1, 0, 0] and verdict.parts["syntax_error"] == [0, 0, 1, 0]
    assert UnitTests(partial=True, budget=budget).score([right, half]) == [1.0, 0.5]
    with pytest.raises(RewardError, match=r"reward 'tests': the prompt 'Write it.' has no tests \(test, entry_point"):
        UnitTests(budget=budget).score([sample("x = 1")])
    with pytest.raises(RewardError, match=r"the prompt 'Write it.': 'tests' must be a list"):
        UnitTests(budget=budget).score([sample("x = 1", tests=3)])
    with pytest.raises(RewardError, match=r"the tests of the prompt 'Write it.' cannot be run \(SyntaxError"):
        UnitTests(budget=budget).score([sample("x = 1", tests=["assert ("])])
    with pytest.raises(RewardUnavailableError, match=r"took longer than 0\.001 s \(total_seconds\)"):
        UnitTests(budget=Budget(**BUDGET, total_seconds=0.001)).score([right] * 3)


def test_a_result_is_of_all_tests():
    assert result_of([("passed", "")] * 2, 2) == TestsResult(2, 2)
    assert result_of([("passed", "")], 2).reason == "crash"  # one is missing, whatever was said of it
    assert result_of([("passed", ""), ("timeout", "t"), ("wrong", "")], 5) == TestsResult(1, 5, "timeout", "t")
    assert result_of([("made up", "")], 1).reason == "crash"
    assert TestsResult(0, 0).score(True) == 1.0
    assert (TestsResult(1, 4, "wrong").score(True), TestsResult(1, 4, "wrong").score(False)) == (0.25, 0.0)


def test_code_that_sleeps_while_it_is_loaded_is_given_up():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        told = run_tests(ours.fileno(), NOTHING.tests | {"asserts": ["assert f()"], "pairs": None, "patience": 0.05})
    assert told == ([("timeout", "while it was loaded")], 1)


def test_which_source_is_run():
    assert sources("x = 1", "", "") == ["x = 1"]
    assert sources("def add(a, b): return 1", ADD, "add") == [ADD, "def add(a, b): return 1"]
    assert sources("    return 1\nprint()\n", ADD, "add") == [ADD + "    return 1\nprint()\n"]
    assert sources("    return 1\nThat is it.", ADD, "add") == [ADD + "    return 1\n"]
    for nothing in ("", "# later", "'a text'"):
        with pytest.raises(SyntaxError):
            sources(nothing, ADD, "add")


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("3\n", "3", True),
        ("1 2 \n3\n\n", "1 2\n3", True),
        ("1\n2", "1 2", False),
        ("0.3333333", "0.33333333", True),
        ("0.34", "0.33", False),
        ("3.0", "3", False),
        ("yes", "Yes", False),
        ("", "0.5", False),
    ],
)
def test_outputs_that_are_the_same(given, expected, same):
    assert same_output(given, expected) is same


def test_values_arrive_as_what_they_are_built_of():
    class Liar(int):
        __eq__ = lambda self, other: True  # noqa: E731
        __hash__ = int.__hash__

    class Named(dict):
        pass

    told = json.loads(json.dumps(encoded([Liar(3), Named(a=(1, 2)), float("inf"), "\ud800", True], lambda other: None)))
    found = decoded(told, lambda name, content: None)
    assert found == [3, {"a": (1, 2)}, float("inf"), "\ud800", True] and [type(one) for one in found[:2]] == [int, dict]
    assert found[0] != 4


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="the real files are not beside the repository")
def test_canonical_solutions_pass_and_perturbed_ones_fail():
    require()
    rows = [json.loads(line) for line in REAL.read_text().splitlines()]

    def samples(change):
        return [
            sample(change(row["canonical_solution"]), row["prompt"], test=row["test"], entry_point=row["entry_point"])
            for row in rows
        ]

    assert [one.reason for one in results(*samples(str), partial=False)] == [""] * 100
    wrong = results(*samples(lambda code: code.replace("return ", "return not ")), partial=False)
    assert not [row["task_id"] for row, one in zip(rows, wrong, strict=True) if not one.reason]
