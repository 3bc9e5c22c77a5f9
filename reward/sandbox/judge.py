"""The side of the tests: runs them in a cage of its own, asks the reply's side for values, and says what came of each.

A name of a test that neither the test nor Python has is the reply's: `Remote` stands for it, calls it over there and
brings back plain data. Objects of the reply's own classes stay there; here they are equal to nothing but themselves.
"""

from __future__ import annotations

import ast
import builtins
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

from reward.sandbox.remote import EndedError, RaisedError, Remote, Talk, fault
from reward.sandbox.wire import WireError, receive

TEST = "__align_test__"  # what a statement of `check` is wrapped in
LAST = ("timeout", "crash")  # outcomes that leave nobody to ask
Outcome = tuple[str, str]  # what came of a test, and why


class StoppedError(BaseException):
    """One failed, and no further one is asked for."""


def judge(file: int, tests: dict[str, Any]) -> tuple[list[Outcome], int]:
    """What came of each test that was made, and how many there are; with `stop` none follows one that failed, and none
    follows one that ended the reply's process.

    Args:
        file: the socket to the reply's side.
        tests: `reward.code_tests.CodeTests` as a dictionary, with `stop`, `prefix` and `patience`.
    """
    talk = Talk(file, tests["patience"])
    try:
        made, total = _read(talk, tests)
    except Exception as error:  # the tests themselves
        return [("broken_test", f"{type(error).__name__}: {error}"[:300])], 1
    try:
        said = receive(file) if talk.hears(tests["patience"]) else {"failed": "timeout", "why": "while it was loaded"}
    except WireError:
        said = {}
    if "ready" not in said:
        return [(fault(said.get("failed")), str(said.get("why", ""))[:300])], total
    found: list[Outcome] = []
    try:
        for outcome in made:
            found.append(outcome)
            if outcome[0] != "passed" and (tests["stop"] or outcome[0] in LAST):
                break
    except EndedError as error:
        found.append((str(error), ""))
    return found, total


def _read(talk: Talk, tests: dict[str, Any]) -> tuple[Iterator[Outcome], int]:
    """What comes of the tests, one after the other, and how many there are.

    Raises:
        Exception: whatever Python says of tests that it cannot read, or whose helpers fail.
    """
    pairs, function = tests["pairs"], tests["function"]
    if pairs is not None:
        if function:
            given = (partial(_gives, talk, function, arguments, expected) for arguments, expected in pairs)
            return (_session(talk, test) for test in given), len(pairs)
        return (_printed(talk.ask({"stdin": stdin}), expected) for stdin, expected in pairs), len(pairs)
    helpers = _helpers(tests)
    if tests["check"]:
        return _checked(talk, tests, helpers)
    trees = [ast.parse(f"{tests['setup']}\n{text}") for text in tests["asserts"]]
    given = (partial(_assertion, talk, tree, helpers) for tree in trees)
    return (_session(talk, test) for test in given), len(trees)


def _session(talk: Talk, test: Callable[[], None]) -> Outcome:
    """One test, against a process of its own over there."""
    talk.functions.clear()
    if "begun" not in talk.ask({"begin": True}):
        raise EndedError("crash")
    made = _outcome(test)
    if made[0] not in LAST:
        talk.ask({"end": True})
    return made


def _outcome(test: Callable[[], None]) -> Outcome:
    try:
        test()
    except AssertionError as error:
        return "wrong", str(error)[:300]
    except RaisedError as error:
        return ("memory" if error.name == "MemoryError" else "exception"), str(error)[:300]
    except EndedError as error:
        return str(error), ""
    except StoppedError:
        return "passed", ""  # it is told already
    except RecursionError:
        return "wrong", "RecursionError"
    except MemoryError:
        return "memory", "in the test"
    except Exception as error:  # of a test that a value of the wrong kind broke
        return "wrong", f"{type(error).__name__}: {error}"[:300]
    return "passed", ""


def _gives(talk: Talk, function: str, arguments: list[Any], expected: Any) -> None:
    given = _listed(talk.do("call", {"global": function}, *arguments))
    assert given == expected or [given] == expected, "another value"  # the second as APPS has it


def _listed(value: Any) -> Any:
    """With lists for tuples, as JSON writes them."""
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _printed(said: dict[str, Any], expected: str) -> Outcome:
    if said.get("ended"):
        return fault(said["ended"]), ""
    if why := str(said.get("why", ""))[:300]:
        return ("memory" if why.startswith("MemoryError") else "exception"), why
    return ("passed", "") if same_output(str(said.get("stdout", "")), expected) else ("wrong", "another output")


def same_output(given: str, expected: str) -> bool:
    """Whether two outputs are equal line by line, blanks at the ends of lines and empty lines at the end left out; a
    number with a decimal point may differ by a millionth."""
    lines = [[line.split() for line in text.rstrip().splitlines()] for text in (given, expected)]
    if [len(line) for line in lines[0]] != [len(line) for line in lines[1]]:
        return False
    return all(_same_word(a, b) for ours, theirs in zip(*lines, strict=True) for a, b in zip(ours, theirs, strict=True))


def _same_word(given: str, expected: str) -> bool:
    if given == expected:
        return True
    try:
        numbers = "." in expected and (float(given), float(expected))
    except ValueError:
        return False
    return bool(numbers) and math.isclose(*numbers, rel_tol=1e-6, abs_tol=1e-6)


def _helpers(tests: dict[str, Any]) -> dict[str, Any]:
    """What the row gives its tests: imports, and what its prompt defines beside the function that is asked for."""
    namespace: dict[str, Any] = {"__name__": "tests"}
    for source in (*tests["helpers"], _whole(tests["prefix"])):
        exec(compile(source, "helpers", "exec", dont_inherit=True), namespace)
    return namespace


def _whole(prefix: str) -> str:
    """A beginning of a program that Python can read: a function without a body gets one; "" where that does not do."""
    for source in (prefix, f"{prefix}    pass\n"):
        try:
            ast.parse(source)
            return source
        except SyntaxError:
            continue
    return ""


def _namespace(talk: Talk, helpers: dict[str, Any], tree: ast.Module) -> dict[str, Any]:
    """What a test sees: the helpers, and the reply's for every name that neither they, the test nor Python has.

    `math.isclose` is Python's where nobody imports `math`: a reply's own would say what it likes."""
    namespace, bound = dict(helpers), _bound(tree)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    asked = {node.id for node in names if node.id not in namespace and node.id not in bound}
    attributes = [node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    for name in asked & {of.id for of in attributes if isinstance(of, ast.Name)} & sys.stdlib_module_names:
        with suppress(ImportError):
            exec(f"import {name}", namespace)
    asked -= namespace.keys()
    return namespace | {name: talk.remote("global", name) for name in asked if not hasattr(builtins, name)}


def _bound(tree: ast.Module) -> set[str]:
    """Names that the test itself gives something."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
    return found


def _assertion(talk: Talk, tree: ast.Module, helpers: dict[str, Any]) -> None:
    namespace = _namespace(talk, helpers, tree)
    if not any(isinstance(value, Remote) for value in namespace.values()):
        called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]  # assert sum(1, 2) == 3
        names = [of.id for of in called if isinstance(of, ast.Name) and of.id not in namespace]
        namespace |= {name: talk.remote("global", name) for name in names}
    exec(compile(tree, "test", "exec", dont_inherit=True), namespace)


def _checked(talk: Talk, tests: dict[str, Any], helpers: dict[str, Any]) -> tuple[Iterator[Outcome], int]:
    """HumanEval's `check(candidate)`: each of its statements that asserts something is a test, or the whole."""
    tree = ast.parse(tests["check"])
    (check,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check")
    asserting = [any(isinstance(node, ast.Assert) for node in ast.walk(statement)) for statement in check.body]
    namespace = helpers | {tests["function"]: talk.remote("global", tests["function"])}
    namespace = _namespace(talk, namespace, tree)
    check.body = [_wrapped(one) if asserts else one for one, asserts in zip(check.body, asserting, strict=True)]
    exec(compile(ast.fix_missing_locations(tree), "test", "exec", dont_inherit=True), namespace)

    def made() -> Iterator[Outcome]:
        found: list[Outcome] = []
        namespace[TEST] = _Statement(found, tests["stop"])
        ended = _session(talk, lambda: namespace["check"](namespace[tests["function"]]))
        yield from found
        if ended[0] != "passed" or not any(asserting):
            yield ended

    return made(), max(1, sum(asserting))


def _wrapped(statement: ast.stmt) -> ast.stmt:
    inside = ast.With([ast.withitem(ast.Name(TEST, ast.Load()))], [statement])
    return ast.copy_location(inside, statement)


class _Statement:
    """Notes what comes of a statement, and lets the next one follow."""

    def __init__(self, found: list[Outcome], stop: bool):
        self.found, self.stop = found, stop

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if isinstance(error, EndedError):
            return False

        def again() -> None:
            if error is not None:
                raise error

        self.found.append(_outcome(again))
        if error is not None and self.stop:
            raise StoppedError
        return True
