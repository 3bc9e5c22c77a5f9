"""What a tokenizer's chat template writes: the errors of its code, and what it puts before the first turn."""

from __future__ import annotations

import ctypes
import datetime
import re
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from align.runtime.errors import AlignError, reason_of
from align.runtime.terminal import shortened
from data_formats.chatml.pieces import IM_END, IM_START
from data_formats.records import Message

_FOUND: WeakKeyDictionary[Any, tuple[Any, str, Message | None]] = WeakKeyDictionary()
SECONDS = 5.0  # a conversation takes a template some milliseconds
GROWTH, ROOM = 16, 1 << 20  # a text is at most so many times the turns, and so many characters, long
TODAY = datetime.date(2024, 7, 26)  # Llama 3.1's own, for templates that ask: a run tomorrow trains the same ids
_CODE = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_NO_POWER = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?<=[(,])\s*\*\*""")  # strings, keyword arguments
_SMALL_POWER = re.compile(r"\b\d{1,2}\s*\*\*\s*\d\b")
_GIANT = re.compile(r"\*\*|\d{9,}")
_ASKS_DATE = re.compile(r"""\bstrftime_now\(\s*(['"])(.*?)\1\s*\)""")
_LONE = ({"role": "user", "content": "?"},)


class TemplateError(AlignError, ValueError):
    """A chat template that fails, or that writes what no conversation is trained with."""


def render_template(tokenizer: Any, turns: Sequence[dict[str, Any]], **options: Any) -> str:
    """What the tokenizer's chat template writes.

    A template that asks for the date is told `TODAY`.

    Raises:
        TemplateError: the template fails: a mistake in it, a refusal of its own, something unsafe, huge or endless.
    """
    try:
        _refuse_giants(str(tokenizer.chat_template))
        template = _dated(tokenizer.get_chat_template(tools=options.get("tools")))
        text = _bounded(
            lambda: tokenizer.apply_chat_template(list(turns), chat_template=template, tokenize=False, **options)
        )
        given = len(repr(turns)) + len(repr(options.get("tools")))
        if len(text) > ROOM + GROWTH * given:
            raise OverflowError(f"it makes {len(text)} characters of {given}")
        return text
    except Exception as error:  # jinja2's own, its sandbox's, and whatever a template raises: that is the model's code
        said, roles = f"{type(error).__name__}: {reason_of(error)}", ", ".join(turn["role"] for turn in turns)
        raise TemplateError(f"the tokenizer's chat template fails on a conversation of {roles} ({said})") from error


@lru_cache(maxsize=64)
def _dated(template: str) -> str:
    """The template with `TODAY` where it asks for the date; transformers from 5.24 on lets nobody pass a function."""
    return _ASKS_DATE.sub(lambda asked: repr(TODAY.strftime(asked[2])), template)


@lru_cache(maxsize=64)
def _refuse_giants(template: str) -> None:
    """Giant powers and numbers (`9**9**9`, `'x' * 10000000000`): they are computed in one go, which nothing can end.

    Raises:
        OverflowError: the template's code has one.
    """
    for code in _CODE.findall(template):
        rest = _SMALL_POWER.sub("0", _NO_POWER.sub("", code))
        if found := _GIANT.search(rest):
            raise OverflowError(f"it computes with a power or number that may be giant: {shortened(found.group())}")


def _bounded(work: Callable[[], str]) -> str:
    """`work()` on a thread of its own, which is ended when it takes too long: a template may loop for hours.

    Raises:
        TimeoutError: it did; else what `work` raises.
    """
    done: list[str] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TimeoutError))
        raise TimeoutError(f"it takes longer than {SECONDS:g} s")
    if failed:
        raise failed[0]
    return done[0]


def opening_token(tokenizer: Any) -> str:
    """What the tokenizer's chat template writes before the first turn: its BOS token, or nothing.

    Raises:
        TemplateError: the template fails, or writes anything else there.
    """
    return _opening(tokenizer)[0]


def template_system_turn(tokenizer: Any) -> Message | None:
    """The system turn that the tokenizer's chat template puts before a lone user turn, None where it puts none.

    Raises:
        TemplateError: see `opening_token`.
    """
    return _opening(tokenizer)[1]


def _opening(tokenizer: Any) -> tuple[str, Message | None]:
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return "", None
    if tokenizer not in _FOUND or _FOUND[tokenizer][0] != template:
        head, mark, rest = render_template(tokenizer, _LONE).partition(IM_START)
        if not mark or head not in ("", tokenizer.bos_token):
            raise TemplateError(
                f"the tokenizer's chat template does not begin a conversation with {IM_START} or a BOS token, but with "
                f"{shortened(head or mark)!r}: it writes no ChatML"
            )
        system = rest.startswith("system\n")
        turn = Message("system", rest.removeprefix("system\n").partition(IM_END)[0]) if system else None
        _FOUND[tokenizer] = template, head, turn
    return _FOUND[tokenizer][1:]
