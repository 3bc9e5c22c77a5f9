"""What the tests see of the reply's side: names and things of it, which are asked over there, and plain values.

A function of the reply's is called with copies of what it is handed; lists, dictionaries and sets that it changed are
changed here too. Functions of the test's that it is handed are called back here.
"""

from __future__ import annotations

import builtins
import select
import time
from collections.abc import Iterator
from typing import Any

from reward.sandbox.wire import WireError, decoded, encoded, receive, send

FAULTS = ("syntax_error", "exception", "memory", "timeout", "crash")  # the only words that a reply may say of itself
NEVER = (Exception, AssertionError, StopIteration, StopAsyncIteration)  # they would say something of the test's own


def fault(word: Any) -> str:
    """What the reply's side says of its end: one of `FAULTS` and never a success, whatever it says."""
    return word if isinstance(word, str) and word in FAULTS else "crash"


class RaisedError(Exception):
    """The reply's code raised something; bears its name."""

    def __init__(self, name: str, why: str):
        super().__init__(why)
        self.name = name


def raised(name: str, why: str) -> RaisedError:
    """The error of that name, which a test may expect (`except ValueError`), where it is one of Python's."""
    known = getattr(builtins, name, None)
    if isinstance(known, type) and issubclass(known, Exception) and known not in NEVER:
        try:
            return type(name, (RaisedError, known), {})(name, why)
        except TypeError:  # one that is made of more than a text
            pass
    return RaisedError(name, why)


class EndedError(BaseException):
    """The reply's process is no more, or took too long: no test may catch that."""


class Talk:
    """The conversation with the reply's side.

    Args:
        file: the socket.
        patience: seconds of wall clock for an answer.
    """

    def __init__(self, file: int, patience: float):
        self.file, self.patience, self.functions = file, patience, []

    def hears(self, seconds: float) -> bool:
        """Whether the other side says something within so many seconds, or ends."""
        return bool(select.select([self.file], [], [], seconds)[0])

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message.

        Raises:
            EndedError: there is none.
        """
        end = time.monotonic() + self.patience
        try:
            send(self.file, message)
            while True:
                if not self.hears(max(0.0, end - time.monotonic())):
                    raise EndedError("timeout")
                said = receive(self.file)
                if "test" not in said:
                    break
                send(self.file, self._called_back(said))
        except WireError as error:
            raise EndedError("crash") from error
        if "ended" in said and "end" not in message and "stdin" not in message:
            raise EndedError(fault(said["ended"]))
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
        if said.get("stop") and what == "next":  # from anywhere else it would end a loop of the test's
            raise StopIteration
        if "value" not in said:
            raise raised(str(said.get("raised")), str(said.get("why", "")))
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
