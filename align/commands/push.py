"""align push RUN|FOLDER REPO: a model and its card to the hub."""

from __future__ import annotations

import argparse
from typing import Any

from align.runtime.terminal import say


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "upload a model's folder and its card to the hub, the model alone (no checkpoints, states or logs)"
    parser = commands.add_parser("push", help=words, description=f"{words[0].upper()}{words[1:]}.")
    parser.set_defaults(work=push_command)
    parser.add_argument("folder", metavar="RUN|FOLDER", help="a run (runs/NAME) or a model's folder")
    parser.add_argument("repo", metavar="REPO", help="ORGANISATION/NAME, made where it is not there yet")
    parser.add_argument("--stage", metavar="STAGE", help="of a run: whose model (default: that of its newest stage)")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def push_command(args: argparse.Namespace) -> None:
    """Push, and say where to."""
    from align.models.push import model_of, push

    folder = model_of(args.folder, args.stage)
    say(f"{folder} is pushed to {push(folder, args.repo, private=args.private)}")
