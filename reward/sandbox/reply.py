"""The side of the reply: runs its code in the cage, and answers what the judge asks.

Nothing here has to be trusted. Code that changes this program while it runs changes its own answers, which are
compared elsewhere, and finds neither a test nor an expected value.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from reward.sandbox.wire import WireError, decoded, encoded, receive, send

INDENT = "    "


class NoCodeError(Exception):
    """Nothing that Python can read."""


def sources(code: str, prefix: str, entry_point: str) -> list[str]:
    """What is run, in order: the code, behind the prompt's own where it goes on with that (HumanEval).

    A completion may go on talking behind the function, and may have lost the blanks of its first line.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: what Python says of code that it cannot read.
    """
    if not prefix:
        ast.parse(code)
        return [code]
    try:
        if entry_point in _defined(ast.parse(code)):
            return [*([prefix] if _reads(prefix) else []), code]
    except (SyntaxError, ValueError):
        pass
    first: Exception | None = None
    for candidate in (code, _body(code), INDENT + code, _body(INDENT + code)):
        try:
            tree = ast.parse(prefix + candidate)
        except SyntaxError as error:
            first = first or error
            continue
        if _has_body(tree, entry_point):
            return [prefix + candidate]
    raise first or SyntaxError(f"{entry_point} is not defined")


def _reads(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _defined(tree: ast.Module) -> set[str]:
    """Names that a module defines at its top."""
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    assigned = (target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
    return found | {target.id for target in assigned if isinstance(target, ast.Name)}


def _has_body(tree: ast.Module, name: str) -> bool:
    """Whether the last function of that name does more than say what it should do."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return bool(functions) and any(not _is_text(node) for node in functions[-1].body)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _body(code: str) -> str:
    """The lines before the first that is not indented."""
    kept: list[str] = []
    for line in code.splitlines(keepends=True):
        if kept and line.strip() and not line[0].isspace():
            break
        kept.append(line)
    return "".join(kept)


def answer(talk: int, program: dict[str, Any]) -> None:
    """Have `program` answered by a process of its own, and say it where that breaks off."""
    if ended := _apart(lambda: _answer(talk, program)):
        with contextlib.suppress(WireError):
            send(talk, {"failed": ended, "why": "while it was loaded", "ended": ended})


def _answer(talk: int, program: dict[str, Any]) -> None:
    """Read the code, run it where its functions are asked for, and answer until nobody asks any more."""
    builtins.exit = builtins.quit = sys.exit
    try:
        texts = sources(program["code"], program["prefix"], program["entry_point"])
        codes = [compile(text, "reply", "exec", dont_inherit=True) for text in texts]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        send(talk, {"failed": "syntax_error", "why": _said(error)})
        return
    module = types.ModuleType("__main__" if program["run"] else "reply")
    sys.modules[module.__name__] = module
    if not program["run"]:
        why = _run(codes, module)
        if why:
            send(talk, {"failed": _kind(why), "why": why})
            return
    send(talk, {"ready": True})
    with contextlib.suppress(WireError):
        while True:
            asked = receive(talk)
            if program["run"]:
                send(talk, _whole(codes, module, asked["stdin"], program["output"]))
            else:
                send(talk, {"ended": _apart(lambda: _converse(talk, module))})


def _run(codes: list[types.CodeType], module: types.ModuleType) -> str:
    """Run the code; what it raised."""
    try:
        for code in codes:
            exec(code, module.__dict__)
    except SystemExit as error:
        return "" if module.__name__ == "__main__" and error.code in (None, 0) else _said(error)
    except BaseException as error:
        return _said(error)
    return ""


def _apart(work: Callable[[], None]) -> str:
    """Do `work` in a process of its own, so that a test finds nothing of the one before; how that ended."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return how_it_ended(os.waitpid(child, 0)[1])


def how_it_ended(status: int) -> str:
    """`` for a process that ended by itself, `timeout` where its CPU time was over, else `crash`."""
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "crash"
    return "" if status == 0 else "crash"


def _whole(codes: list[types.CodeType], module: types.ModuleType, stdin: str, most: int) -> dict[str, Any]:
    """Run the whole program on an input; what it wrote, and how it ended. The file holds no more than the limit of a
    file's size, and no more than `most` bytes are told."""

    def program() -> None:
        for standard, file in ((0, "in"), (1, "out")):
            os.dup2(os.open(file, os.O_RDWR), standard)
        sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
        why = _run(codes, module)
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        if why:
            with open("why", "w") as opened:
                opened.write(why)

    for name, text in (("in", stdin), ("out", ""), ("why", "")):
        with open(name, "w", encoding="utf-8") as opened:
            opened.write(text)
    ended = _apart(program)
    with open("out", "rb") as out, open("why") as why:
        return {"ended": ended, "stdout": out.read(most + 1).decode("utf-8", "replace"), "why": why.read(500)}


class _Things:
    """What is no plain data, by numbers."""

    def __init__(self, module: types.ModuleType, call_back: Callable[[int, list[Any], dict[str, Any]], Any]):
        self.module, self.call_back, self.kept = module, call_back, []

    def keep(self, value: Any) -> Any:
        for number, kept in enumerate(self.kept):
            if kept is value:
                return {"ref": number}
        self.kept.append(value)
        return {"ref": len(self.kept) - 1}

    def find(self, name: str, content: Any) -> Any:
        if name == "ref":
            return self.kept[content]
        if name == "global":
            return self._global(content)
        if name == "test":  # a function of the test's
            return lambda *args, **named: self.call_back(content, list(args), named)
        raise KeyError(name)

    def _global(self, name: str) -> Any:
        """A name of the program; a method of its class `Solution` where it has none such."""
        if not hasattr(self.module, name) and hasattr(self.module, "Solution"):
            return getattr(self.module.Solution(), name)
        return getattr(self.module, name)


def _converse(talk: int, module: types.ModuleType) -> None:
    """Answer what one test asks; the first question was the test's beginning."""

    def call_back(number: int, args: list[Any], named: dict[str, Any]) -> Any:
        said = {"test": number, "args": encoded(args, things.keep), "named": encoded(named, things.keep)}
        send(talk, said)
        given = receive(talk)
        if "raised" in given:
            raise RuntimeError(given["raised"])
        return decoded(given["value"], things.find)

    things = _Things(module, call_back)
    send(talk, {"begun": True})
    while not (asked := receive(talk)).get("end"):
        try:
            said = _answered(asked, things)
        except StopIteration:
            said = {"stop": True}
        except BaseException as error:
            said = {"raised": type(error).__name__, "why": _said(error)}
        send(talk, said)


def _answered(asked: dict[str, Any], things: _Things) -> dict[str, Any]:
    words = decoded(asked["args"], things.find)
    of = decoded(asked["of"], things.find)
    named = decoded(asked["named"], things.find) if "named" in asked else {}
    do: dict[str, Callable[[], Any]] = {
        "call": lambda: of(*words, **named),
        "get": lambda: getattr(of, *words),
        "set": lambda: setattr(of, *words),
        "item": lambda: of[words[0]],
        "put": lambda: of.__setitem__(*words),
        "has": lambda: words[0] in of,
        "iter": lambda: _Kept(iter(of)),
        "next": lambda: next(of),
        "len": lambda: len(of),
        "text": lambda: str(of),
        "true": lambda: bool(of),
    }
    value = do[asked["do"]]()
    said = {"value": things.keep(value.thing) if isinstance(value, _Kept) else encoded(value, things.keep)}
    changed = [encoded(word, things.keep) if isinstance(word, list | dict | set) else None for word in words]
    if any(one is not None and one != old for one, old in zip(changed, asked["args"], strict=True)):
        said["changed"] = changed
    return said


class _Kept:
    """A thing that stays here even where it could be told."""

    def __init__(self, thing: Iterator[Any]):
        self.thing = thing


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:  # its own __str__
        return type(error).__name__


def _kind(why: str) -> str:
    return "memory" if why.startswith("MemoryError") else "exception"
