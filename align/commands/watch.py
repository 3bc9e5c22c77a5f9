"""align watch RUN: curves and newest replies of a run in progress, in the terminal.

Reads the run's files as they grow, so it does not matter how the run was started. Shows the stage that is at work until
every stage of the recipe is finished, or until Ctrl-C, which ends the looking and not the run. A run that has not begun
is waited for. With --once, and where the output is no terminal, one look is printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from align.runs.interrupt import until_told
from align.runs.progress import format_figure, format_seconds
from align.runtime.terminal import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from align.report.live import LiveReply, Progress
    from align.runs.run_files import Series
    from align.runtime.console import Console

LEAST, LINES = 34, 3  # letters of a curve's width, lines of its height
REPLIES = 3
SILENCE = 60.0  # seconds without a figure, and as many steps, after which that is said
SILENT_STEPS = 10


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "curves and newest replies of a run in progress, in the terminal"
    parser = commands.add_parser("watch", help=words, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(work=watch_command)
    parser.add_argument("run", metavar="RUN", help="a run folder, or the folder of one of its stages")
    parser.add_argument("--once", action="store_true", help="print one look, and end")
    parser.add_argument("--every", metavar="SECONDS", type=_seconds, default=2.0, help="between two looks (default 2)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0.1 <= float(text) <= 3600:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be 0.1 to 3600 seconds, not '{text}'")


def watch_command(args: argparse.Namespace) -> None:
    """Look, once or until there is nothing more to see.

    Raises:
        MissingFileError: with one look only, a folder that holds no stage that has begun.
    """
    from rich.live import Live

    from align.report.live import LiveRun
    from align.runtime.console import Console
    from align.runtime.errors import MissingFileError
    from align.runtime.paths import typed_path

    run, console = LiveRun(typed_path(args.run)), Console()
    found = run.look()
    if args.once or not console.is_terminal:
        if not found.stage:
            raise MissingFileError(f"{args.run}: no stage of a run has begun here; name the output_dir of a recipe")
        console.print(frame(found, console, sys.maxsize))
        return
    with until_told(), Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(frame(found, console, console.size.height), refresh=True)
            if found.done:
                break
            time.sleep(args.every)
            found = run.look()


def frame(found: Progress, console: Console, height: int) -> RenderableType:
    """One look in at most `height` lines: where the run is, as many curves as fit, the newest replies."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(line, style, no_wrap=True, overflow="ellipsis") for line, style in _head(found)]
    if not found.stage:
        return Group(*parts)
    width = console.width
    replies = [line for reply in found.replies[:REPLIES] for line in _reply(reply, console)]
    beside = max(1, width // LEAST)
    room = height - len(parts) - len(replies) - 2
    rows = min(-(-len(found.curves) // beside), max(1, room // (LINES + 2)))
    curves = list(found.curves.items())[: beside * rows]
    if curves:
        parts += [Text(), _grid(curves, beside, width, plain=not _draws(console))]
    if replies and height - rows * (LINES + 2) - len(parts) > 2:
        parts += replies
    return Group(*parts)


def _draws(console: Console) -> bool:
    return "utf" in console.encoding.lower()


def _head(found: Progress) -> list[tuple[str, str]]:
    """Lines and their styles."""
    name = printable(found.name)
    if not found.stage:
        return [(f"{name}: no stage has begun yet; waiting (Ctrl-C ends this)", "bold")]
    step = f"step {found.step}" + (f" of {found.total}" if found.total else "")
    words = [f"{name}: {found.stage}", step]
    working = found.stage not in found.finished
    if working and found.seconds is not None:
        words.append(f"{format_figure(found.seconds)} s a step")
        if found.total and found.total > found.step:
            words.append(f"about {format_seconds((found.total - found.step) * found.seconds)} left")
    lines = [(", ".join(words), "bold")]
    told = [f"finished: {', '.join(found.finished)}"] if found.finished else []
    told += [f"to come: {', '.join(found.waiting)}"] if found.waiting else []
    if told:
        lines.append(("; ".join(told), "dim"))
    silence = time.time() - found.logged if working and found.logged is not None else 0.0
    if silence > max(SILENCE, SILENT_STEPS * (found.seconds or 0.0)):
        lines.append((f"nothing logged for {format_seconds(silence)}: is it still running?", "yellow"))
    return lines


def _grid(curves: list[tuple[str, Series]], beside: int, width: int, *, plain: bool) -> RenderableType:
    from rich.table import Table

    room = (width - 2 * (beside - 1)) // beside
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for _ in range(beside):
        grid.add_column(width=room, no_wrap=True, overflow="crop")
    cells = [_curve(title, series, room, plain=plain) for title, series in curves]
    for at in range(0, len(cells), beside):
        grid.add_row(*cells[at : at + beside])
    return grid


def _curve(title: str, series: Series, width: int, *, plain: bool) -> Text:
    """The title and the last value, the curve, and its least and greatest value."""
    from rich.text import Text

    from align.report.braille import plot

    steps, values = series
    last = format_figure(values[-1])
    named = Text(printable(title))
    named.truncate(max(1, width - len(last) - 1), overflow="ellipsis", pad=True)
    ends = f"{format_figure(min(values))} to {format_figure(max(values))}, steps {steps[0]:g} to {steps[-1]:g}"
    lines = plot(series, width, LINES, plain=plain)
    return Text.assemble(
        named, " ", (last, "bold"), "\n", ("\n".join(lines), "blue"), "\n", (ends[:width], "dim"), no_wrap=True
    )


def _reply(reply: LiveReply, console: Console) -> list[Text]:
    """Prompt, reply and figures, a line each but for a long reply's second."""
    from rich.text import Text

    said = Text(printable(reply.reply) or "(nothing)")
    lines = said.wrap(console, max(8, console.width - 2))[:2]
    return [
        Text(printable(f"> {reply.prompt}"), "bold", no_wrap=True, overflow="ellipsis"),
        *(Text.assemble("  ", line, no_wrap=True, overflow="ellipsis") for line in lines),
        Text("  " + ", ".join(reply.notes), "dim", no_wrap=True, overflow="ellipsis"),
    ]
