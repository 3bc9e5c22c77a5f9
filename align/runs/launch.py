"""What every way of starting the program shares: the environment, logging, and how errors and Ctrl-C end it.

Telemetry: Hugging Face libraries report usage by default (TRL's trainers included; they honour the same switch). Every
start of this program sets HF_HUB_DISABLE_TELEMETRY=1 unless you have set it yourself.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from align.runs.arguments import without_redoing
from align.runs.interrupt import INTERRUPTED, Stopped, heeding_schedulers
from align.runtime.errors import AlignError
from align.runtime.memory import keep_freed_memory, memory_errors
from align.runtime.ranks import is_main, lost_rank
from align.runtime.secrets import hide
from align.runtime.terminal import clean_foreign_output, say, shortened

PACKAGES = ("align", "data_formats", "reward", "rollouts")
LAUNCHERS = ("accelerate", "torchrun", "accelerate.commands.launch", "torch.distributed.run", "align", "align.cli")
LAST_WORD_SECONDS = 3.0
_COMMAND: ContextVar[str] = ContextVar("command", default="")


class _Messages(logging.Formatter):
    """The message alone; what is a warning or worse says so."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


class _ToStderr(logging.StreamHandler):
    """Writes to what is standard error at the time, which a notebook or a test may have exchanged."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def prepare(debug: bool = False) -> None:
    """Set the environment variables that must be there before torch and transformers are imported, and how memory is
    kept; log to stderr."""
    clean_foreign_output()
    keep_freed_memory()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if debug:
        os.environ["ALIGN_DEBUG"] = "1"
    if os.environ.get("ALIGN_DEBUG", "0") in ("", "0"):
        # of torch's C++ part and its extensions: vLLM's tells in every process to which NUMA node it binds memory
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # it misses kernels for a packing of 4-bit weights that is switched off here (reward.adapter.keep_unpacked)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    handler = _ToStderr()
    handler.setFormatter(_Messages())
    for name in PACKAGES:
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(handler)
            logger.propagate = False
            logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)


@dataclass
class Ending:
    """How a program ended: its exit code."""

    code: int = 0


@contextmanager
def guarded(*, proceed: str) -> Iterator[Ending]:
    """Turns how the block ends into an exit code, the `code` of what it gives.

    That is 0 (or what the block put there), 1 after an AlignError, or where the system has no memory or no way to a
    file (one message, no traceback; ALIGN_DEBUG=1 shows it), 130 after Ctrl-C and 75 after a scheduler's SIGTERM or
    SIGUSR1 (`align.runs.interrupt`), with the command `proceed` that goes on from what is saved. Of several ranks the
    first one speaks; when one was killed, each of the others says that and ends with 1.
    """
    ending, token = Ending(), _COMMAND.set(proceed)

    def stopped(what: str) -> None:
        if is_main():
            told = f"\n{what}; what is finished or saved is kept. Continue with: {hide(proceed)}"
            say(told, file=sys.stderr, flush=True)

    with heeding_schedulers(stopped) as heed:
        try:
            try:
                with memory_errors("the program"):
                    yield ending
            finally:
                heed.deaf()
        except Exception as error:
            if not isinstance(error, AlignError | OSError) and not lost_rank(error):
                raise
            ending.code = _failed(error, proceed)
        except KeyboardInterrupt as stop:
            stopped(str(stop) or "interrupted")
            ending.code = stop.code if isinstance(stop, Stopped) else INTERRUPTED
        finally:
            _COMMAND.reset(token)


def command() -> str:
    """The command that started this program, secrets hidden; empty where a program or a notebook calls us."""
    return hide(_COMMAND.get())


def _failed(error: Exception, proceed: str) -> int:
    """One line for an error that needs no traceback; returns the exit code."""
    if isinstance(error, BrokenPipeError):  # `align recipes show quickstart | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if os.environ.get("ALIGN_DEBUG", "0") not in ("", "0"):
        raise error
    if lost := lost_rank(error):
        told = f"what is finished or saved is kept. Continue with: {hide(proceed)}"
        say(f"error: {lost}; {told}", file=sys.stderr, flush=True)
        os._exit(1)  # the process group can neither be left nor closed without that rank
    if not is_main():
        # What the first rank meets too, it says, and the launcher ends the others; what it does not, is said here.
        time.sleep(LAST_WORD_SECONDS)
    told = (
        str(error)
        if isinstance(error, AlignError)
        else f"the system refused: {shortened(' '.join(str(error).split()), 200)}"
    )
    hint = "" if isinstance(error, AlignError) else " (ALIGN_DEBUG=1 shows where)"
    say(f"error: {hide(told)}{hint}", file=sys.stderr)
    return 1


def started_as(program: str, argv: Sequence[str], alone: Sequence[str] = ("accelerate", "launch")) -> str:
    """The command line that started this entry, to be typed again: `--fresh` left out, the launcher's options kept.

    Args:
        program: the entry, where no launcher is found among the parent processes.
        argv: the entry's own words.
        alone: what stands before `program` then.
    """
    import psutil

    command = [*alone, program, *argv]
    try:
        lines = [parent.cmdline() for parent in psutil.Process().parents()[:3]]
    except psutil.Error:
        lines = []
    for line in lines:
        names = [Path(word).name for word in line]
        start = next((names.index(launcher) for launcher in LAUNCHERS if launcher in names), None)
        if start is not None and line[len(line) - len(argv) :] == list(argv):
            module = ["python", "-m"] if line[start - 1 : start] == ["-m"] else []
            command = [*module, names[start], *line[start + 1 :]]
            break
    return shlex.join(without_redoing(command))
