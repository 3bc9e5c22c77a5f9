"""align launch …: `accelerate launch` whose ranks hear signals and whose exit code is theirs, for schedulers.

align launch --config_file ddp -m align.cli run my.yaml
align launch --config_file fsdp2 --num_processes 8 align/ppo.py my.yaml

WORDS are those of `accelerate launch` (`accelerate launch --help` lists them). A config file of recipes/accelerate may
be named without its folder: one_card, ddp, fsdp2, fsdp2_offload, nodes. SIGTERM and SIGUSR1 make the ranks save and end
with 75, which a scheduler starts again; Ctrl-C with 130.
"""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    no_prefix = "\0"  # every word is accelerate's
    parser = commands.add_parser(
        "launch", help="accelerate launch, for schedulers", description=__doc__, prefix_chars=no_prefix, add_help=False
    )
    parser.set_defaults(work=launch_command, debug=False, parser=parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("words", nargs="*", metavar="WORDS", help="as of accelerate launch")


def launch_command(args: argparse.Namespace) -> int:
    """Start the ranks, wait for them, and return their exit code.

    Raises:
        MissingFileError, LaunchError: a config file or words that do not do.
    """
    if args.words in ([], ["-h"], ["--help"]):
        args.parser.print_help()
        return 0 if args.words else 2
    from align.runs.launcher import launch

    return launch(args.words)
