"""align export-reward MODEL_DIR OUT_DIR: a reward model as a plain transformers classifier."""

from __future__ import annotations

import argparse
from typing import Any

from align.commands.options import add_dtype
from align.runtime.terminal import say


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "write a reward model as a plain sequence classifier for transformers and vLLM"
    parser = commands.add_parser("export-reward", help=words, description=f"{words[0].upper()}{words[1:]}.")
    parser.set_defaults(work=export_reward_command)
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="a reward model's folder (runs/NAME/rm/model) or hub id")
    parser.add_argument("out_dir", metavar="OUT_DIR", help="a new folder")
    add_dtype(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def export_reward_command(args: argparse.Namespace) -> None:
    """Export and say where to."""
    from reward.export import export_classifier

    out_dir = export_classifier(args.model_dir, args.out_dir, dtype=args.dtype)
    say(f"{args.model_dir} is exported to {out_dir}; {out_dir / 'README.md'} says what to feed it")
