"""align merge FOLDER OUT: a whole model from an adapter's folder."""

from __future__ import annotations

import argparse
from typing import Any

from align.commands.options import add_dtype
from align.runtime.terminal import say

OWN_BASE = "own"  # as in align.models.merging, which needs torch


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "merge an adapter (LoRA, QLoRA) into its base and write a whole model"
    parser = commands.add_parser("merge", help=words, description=f"{words[0].upper()}{words[1:]}.")
    parser.set_defaults(work=merge_command)
    parser.add_argument("folder", metavar="FOLDER", help="an adapter's folder (runs/NAME/sft/model) or hub id")
    parser.add_argument("out_dir", metavar="OUT", help="a new folder")
    parser.add_argument(
        "--dequantize",
        action="store_true",
        help="of an adapter on 4-bit weights: merge into these, made wide again; the rounding to 4 bits stays in the "
        "weights, which take their full size",
    )
    parser.add_argument(
        "--base",
        nargs="?",
        const=OWN_BASE,
        metavar="MODEL",
        help="of an adapter on 4-bit weights: merge into the full-precision model MODEL (default: the one the adapter "
        "names), which the adapter was not trained on; of any adapter: where its base lies now",
    )
    add_dtype(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def merge_command(args: argparse.Namespace) -> None:
    """Merge, and say what was written and what it cost."""
    from align.models.merging import merge_folder

    done = merge_folder(args.folder, args.out_dir, dequantize=args.dequantize, base=args.base, dtype=args.dtype)
    say(f"{args.folder} is merged into {done.base}: a {done.kind} of {done.size / 2**30:.3g} GiB in {args.out_dir}")
    if done.quantised and args.dequantize:
        say("its base keeps the rounding to 4 bits that the adapter was trained with, at the size of whole weights")
    elif done.quantised:
        say("the adapter was trained on 4-bit weights, so this model differs a little from the one that was trained")
