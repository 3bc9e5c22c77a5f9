"""What a chat shows: replies as they come, two of them side by side, and sentences. Nothing here knows a model.

Every text goes through `printable` once: what a model writes cannot steer the terminal. Where standard output is no
terminal there are plain lines, one reply after the other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from rich.box import HORIZONTALS
from rich.live import Live
from rich.table import Table
from rich.text import Text

from align.chat.conversation import Said
from align.runtime.console import Console
from align.runtime.terminal import printable, say

EVERY = 0.08  # seconds between two drawings of replies side by side
PROMPT = "> "


def ending(said: Said) -> str:
    """What stands behind a reply that did not end by itself."""
    return {"length": " [cut at the limit of tokens]", "stopped": " [stopped]"}.get(said.ended, "")


def judged(said: Said) -> str:
    """The reward's words, empty without one."""
    return "" if said.score is None else f"reward {said.score:+.3f}"


class Screen:
    """Where a chat is read and shown.

    Args:
        names: of the models.
    """

    def __init__(self, names: Sequence[str]):
        self.names, self.asks, self.live = list(names), sys.stdin.isatty(), sys.stdout.isatty()
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")  # no tokenizer takes half a character
        if self.asks:
            with suppress(ImportError):
                import readline  # noqa: F401 - from now on `input` has a history and edits its line

    def ask(self) -> str:
        """The next line that is typed, or of standard input.

        Raises:
            EOFError: there is none, Ctrl-D.
            KeyboardInterrupt: Ctrl-C.
        """
        if self.asks:
            return input(PROMPT)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def note(self, text: str) -> None:
        """A sentence of the program's own."""
        say(text, flush=True)

    def replies(self) -> Replies:
        """Where the replies to the next question are shown."""
        return SideBySide(self.names) if self.live and len(self.names) > 1 else Replies(self.names)


class Replies:
    """The replies to one question, one after the other; a context.

    Args:
        names: of the models; with several each reply begins with its model's.
    """

    def __init__(self, names: Sequence[str]):
        self.names, self.shown = names, ""

    def __enter__(self) -> Replies:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and self.shown:
            say(flush=True)

    def begin(self, model: int) -> None:
        """The reply of this model comes now."""
        self.shown = ""
        if len(self.names) > 1:
            say(f"{self.names[model]}: ", end="")

    def hear(self, model: int, text: str) -> None:
        """The reply so far."""
        if text.startswith(self.shown):  # decoders may take back a blank at the end
            say(text[len(self.shown) :], end="", flush=True)
            self.shown = text

    def end(self, model: int, said: Said) -> None:
        """The whole reply, and what it is worth."""
        if not said.text.startswith(self.shown):  # a decoder changed what it had given: the whole once more
            say()
            self.shown = ""
        self.hear(model, said.text)
        say(ending(said))
        if said.score is not None:
            say(judged(said))
        sys.stdout.flush()


class SideBySide(Replies):
    """The same in columns, drawn anew while they come, and once more when they are whole."""

    def __init__(self, names: Sequence[str]):
        super().__init__(names)
        self.texts, self.said = [""] * len(names), [Said("")] * len(names)
        self.console, self.drawn = Console(), 0.0
        self.drawing = Live(self._table(), console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Replies:
        self.drawing.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.drawing.stop()
        if kind is None:
            self.console.print(self._table())

    def begin(self, model: int) -> None:
        pass

    def hear(self, model: int, text: str) -> None:
        self.texts[model] = text
        if time.monotonic() - self.drawn > EVERY:
            self.drawing.update(self._table(), refresh=True)
            self.drawn = time.monotonic()

    def end(self, model: int, said: Said) -> None:
        self.texts[model], self.said[model] = said.text + ending(said), said

    def _table(self) -> Table:
        table = Table(box=HORIZONTALS, expand=True, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name in self.names:
            table.add_column(Text(printable(name)), ratio=1, overflow="fold")
        table.add_row(*(Text(printable(text)) for text in self.texts))
        if any(said.score is not None for said in self.said):
            table.add_section()
            table.add_row(*(Text(judged(said)) for said in self.said))
        return table
