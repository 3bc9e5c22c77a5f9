"""The side of the tests: runs them in a cage of its own, asks the reply's side for values, and says what came of each.

A name of a test that neither the test nor Python has is the reply's: `Remote` stands for it, calls it over there and
brings back plain data. Objects of the reply's own classes stay there; here they are equal to nothing but themselves.
"""

from __future__ import annotations

import ast
import builtins
import math
import select
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any

from reward.sandbox.wire import WireError, decoded, encoded, receive, send

TEST = "__align_test__"  # what a statement of `check` is wrapped in
LAST = ("timeout", "crash")  # outcomes that leave nobody to ask
Outcome = tuple[str, str]  # what came of a test, and why


class RaisedError(Exception):
    """The reply's code raised something; bears its name."""

    def __init__(self, name: str, why: str):
        super().__init__(why)
        self.name = name


class EndedError(BaseException):
    """The reply's process is no more, or took too long: no test may catch that."""


class StoppedError(BaseException):
    """One failed, and no further one is asked for."""


class Talk:
    """The conversation with the reply's side.

    Args:
        file: the socket.
        patience: seconds of wall clock for an answer.
    """

    def __init__(self, file: int, patience: float):
        self.file, self.patience, self.functions = file, patience, []

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message.

        Raises:
            EndedError: there is none.
        """
        end = time.monotonic() + self.patience
        try:
            send(self.file, message)
            while True:
                ready, _, _ = select.select([self.file], [], [], max(0.0, end - time.monotonic()))
                if not ready:
                    raise EndedError("timeout")
                said = receive(self.file)
                if "test" not in said:
                    break
                send(self.file, self._called_back(said))
        except WireError as error:
            raise EndedError("crash") from error
        if "ended" in said and "end" not in message and "stdin" not in message:
            raise EndedError(said["ended"] or "crash")
        return said

    def _called_back(self, said: dict[str, Any]) -> dict[str, Any]:
        """What a function of the test's gives, which the reply was handed."""
        try:
            function = self.functions[said["test"]]
            value = function(*decoded(said["args"], self.remote), **decoded(said["named"], self.remote))
            return {"value": encoded(value, self.told)}
        except Exception as error:
            return {"raised": type(error).__name__}

    def remote(self, name: str, content: Any) -> Remote:
        """What stands here for a thing over there."""
        return Remote(self, {name: content})

    def told(self, value: Any) -> Any:
        """How a value that is no plain data is named over there.

        Raises:
            TypeError: it has no name.
        """
        if isinstance(value, Remote):
            return object.__getattribute__(value, "_of")
        if callable(value) and not isinstance(value, type):
            self.functions.append(value)
            return {"test": len(self.functions) - 1}
        raise TypeError(f"the test hands over a {type(value).__name__}, which is no plain data")

    def do(self, what: str, of: Any, *words: Any, **named: Any) -> Any:
        """Have something done over there; lists, dictionaries and sets that it changed are changed here.

        Raises:
            RaisedError: it raised.
            EndedError: it ended.
        """
        message = {"do": what, "of": of, "args": [encoded(word, self.told) for word in words]}
        if named:
            message["named"] = {"dict": [[name, encoded(word, self.told)] for name, word in named.items()]}
        said = self.ask(message)
        if said.get("stop"):
            raise StopIteration
        if "raised" in said:
            raise RaisedError(str(said["raised"]), str(said.get("why", "")))
        for word, changed in zip(words, said.get("changed", ()), strict=False):
            if changed is not None:
                _become(word, decoded(changed, self.remote))
        return decoded(said["value"], self.remote)


def _become(old: Any, new: Any) -> None:
    if isinstance(old, list) and isinstance(new, list):
        old[:] = new
    elif (isinstance(old, dict) and isinstance(new, dict)) or (isinstance(old, set) and isinstance(new, set)):
        old.clear()
        old.update(new)


class Remote:
    """A thing of the reply's: a name of its program, or a value that is no plain data. Asked, it asks over there."""

    __slots__ = ("_of", "_talk")

    def __init__(self, talk: Talk, of: dict[str, Any]):
        object.__setattr__(self, "_talk", talk)
        object.__setattr__(self, "_of", of)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._talk.do("call", self._of, *args, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copy, pickle and the like look for
            raise AttributeError(name)
        return self._talk.do("get", self._of, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._talk.do("set", self._of, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._talk.do("item", self._of, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._talk.do("put", self._of, key, value)

    def __contains__(self, value: Any) -> bool:
        return self._talk.do("has", self._of, value) is True

    def __iter__(self) -> Iterator[Any]:
        items = self._talk.do("iter", self._of)
        while True:
            try:
                yield self._talk.do("next", object.__getattribute__(items, "_of"))
            except StopIteration:
                return

    def __next__(self) -> Any:
        return self._talk.do("next", self._of)

    def __len__(self) -> int:
        return self._talk.do("len", self._of)

    def __str__(self) -> str:
        return str(self._talk.do("text", self._of))

    def __bool__(self) -> bool:
        return self._talk.do("true", self._of) is True


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
        said = receive(file)
    except WireError:
        said = {}
    if "ready" not in said:
        return [(str(said.get("failed", "crash")), str(said.get("why", "")))], total
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
        return str(said["ended"]), ""
    if why := str(said.get("why", "")):
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
    """What a test sees: the helpers, and the reply's for every name that neither they, the test nor Python has."""
    namespace, bound = dict(helpers), _bound(tree)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    asked = {node.id for node in names if node.id not in namespace and node.id not in bound}
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
    """HumanEval's `check(candidate)`: each of its statements that asserts something is a test; one without any is one."""
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
