"""Text for a terminal: what would steer it, or show a line other than it is, becomes a visible escape.

Data, recipes, servers and foreign libraries may hand us any characters. `printable` is the one function that makes them
harmless, and each way to the user's eyes applies it once: `say` instead of `print`, `Parser` for argparse, `Console`
for rich, and `clean_foreign_output` for log records, warnings and tracebacks, whoever writes them; from those it also
takes the secrets, since other libraries quote addresses.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any, NoReturn, TextIO

from align.runtime.secrets import hide

# C0 but for tab and line feed, DEL and C1 (among them ESC, CSI and OSC); marks, overrides and isolates of direction;
# halves of surrogate pairs, which no encoding can write.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""`text` with every steering character written as `\u001b`, which in JSON still means that character."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shortened(text: str, most: int = 60, mark: str = "...") -> str:
    """`text` with at most so many characters, for a sentence; what was cut ends with `mark`."""
    return text if len(text) <= most else text[: most - len(mark)] + mark


def excerpt(text: str, most: int) -> str:
    """The first `most` characters of a text that is shown itself, and how many more there are."""
    return text[:most] + (f" … ({len(text) - most} more characters)" if len(text) > most else "")


def say(text: object = "", *, file: TextIO | None = None, end: str = "\n", flush: bool = False) -> None:
    """`print` of one printable text."""
    print(printable(str(text)), file=file, end=end, flush=flush)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors repeat what was typed in printable characters."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class _Record(logging.LogRecord):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = _traceback(*self.exc_info)  # formatters take it where it is there

    def getMessage(self) -> str:
        return printable(hide(super().getMessage()))


def _traceback(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> str:
    return printable(hide("".join(traceback.format_exception(kind, error, trace)).rstrip("\n")))


def _show_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    say(_traceback(kind, error, trace), file=sys.stderr)


_format_warning = warnings.formatwarning


def _printable_warning(*args: Any, **kwargs: Any) -> str:
    return printable(hide(_format_warning(*args, **kwargs)))


def clean_foreign_output() -> None:
    """From now on log records, warnings and tracebacks of this process are printable and hold no secrets, and what the
    stream's encoding lacks is escaped instead of an error."""
    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = _printable_warning
    sys.excepthook = _show_uncaught
    threading.excepthook = lambda told: _show_uncaught(told.exc_type, told.exc_value, told.exc_traceback)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
