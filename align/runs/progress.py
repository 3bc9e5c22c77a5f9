"""What the user sees of a running stage: what is done, what is left, the key figures.

On a terminal a bar (rich); elsewhere (a log file, CI) a plain line every few seconds. Both go to standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from align.runtime.terminal import say


def format_figure(value: Any) -> str:
    """A number in at most four significant digits; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}"


def format_figures(figures: Mapping[str, Any]) -> str:
    """`loss 0.5123  accuracy 0.78`."""
    return "  ".join(f"{name} {format_figure(value)}" for name, value in figures.items())


def format_seconds(seconds: float) -> str:
    """`7s`, `2:05`, `1:02:05`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class StageProgress:
    """Context manager around a stage's loop.

    Args:
        stage: the name shown.
        total: the number of steps.
        start: steps done before this run (resumed).
        epochs: passes over the data that `total` steps are, where that is known.
        interval: seconds between plain lines.
        enabled: False on the ranks that do not talk.
        stream: where to write; standard error by default.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        start: int = 0,
        epochs: float | None = None,
        interval: float = 5.0,
        enabled: bool = True,
        stream: TextIO | None = None,
    ):
        self.stage, self.total, self.start, self.interval, self.enabled = stage, total, start, interval, enabled
        self.epochs = epochs
        self.stream = stream if stream is not None else sys.stderr
        self.done, self.figures = start, dict[str, Any]()
        self._began = self._last_line = 0.0
        self._shown = -1
        self._bar: Any = None

    def __enter__(self) -> StageProgress:
        self._began = time.monotonic()
        self._last_line = self._began
        if self.enabled and self.stream.isatty():
            self._bar = _rich_bar(self.stream)
            self._task = self._bar.add_task(self.stage, total=self.total, completed=self.start, figures="")
            self._bar.start()
        return self

    def update(self, done: int, **figures: Any) -> None:
        """`done` steps are finished; figures not named keep their last value."""
        self.done = done
        self.figures.update(figures)
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=self._shown_figures())
        elif time.monotonic() - self._last_line >= self.interval:
            self._line()

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self.enabled and self._shown != self.done:
            self._line()

    def describe(self) -> str:
        """The plain line: `ppo  12/80 (15%)  took 0:34, left 3:12  reward 0.51`."""
        took = time.monotonic() - self._began
        times = f"took {format_seconds(took)}"
        if self.start < self.done < self.total:
            times += f", left {format_seconds(took / (self.done - self.start) * (self.total - self.done))}"
        share = f" ({100 * self.done // self.total}%)" if self.total else ""
        return f"{self.stage}  {self.done}/{self.total}{share}  {times}  {self._shown_figures()}".rstrip()

    def _shown_figures(self) -> str:
        """`epoch 0.25/1.8  loss 0.51`."""
        if self.epochs is None or not self.total:
            return format_figures(self.figures)
        epoch = f"epoch {format_figure(self.done / self.total * self.epochs)}/{format_figure(self.epochs)}"
        return f"{epoch}  {format_figures(self.figures)}"

    def _line(self) -> None:
        self._last_line, self._shown = time.monotonic(), self.done
        say(self.describe(), file=self.stream, flush=True)


def _rich_bar(stream: TextIO) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.table import Column

    from align.runtime.console import Console

    return Progress(
        TextColumn("{task.description:>5}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        Elapsed(),
        TextColumn("left"),
        Remaining(),
        TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=Console(file=stream),
    )
