"""align engine add | remove URL RUN: vLLM servers join and leave a ppo stage while it runs.

The trainer looks at the list between two iterations. A server that joins gets the current weights before it is asked
for a reply. One that leaves is not asked any more once the log says so, and may be stopped then; it may also be killed
at any moment, as what it has not answered is asked of the others. Who answers changes no reply, since each has a seed
of its own. The key is the one that the run has in its environment; it is not named here and not written anywhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from align.runtime.terminal import say


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "vLLM servers join and leave a ppo stage while it runs"
    parser = commands.add_parser("engine", help=words, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(work=engine_command)
    parser.add_argument("what", choices=("add", "remove"))
    parser.add_argument("url", metavar="URL", help="https://HOST:PORT, http:// on this machine, or unix:///PATH")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder, or that of its ppo stage")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def engine_command(args: argparse.Namespace) -> None:
    """Change the list, and print it."""
    from align.runs import engine_list

    stage = engine_list.stage_of(args.run)
    change = engine_list.add if args.what == "add" else engine_list.remove
    listed = change(stage, args.url.rstrip("/"))
    say(f"from its next iteration on {stage} uses {', '.join(listed)}")
