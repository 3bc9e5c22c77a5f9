"""align convert-qwen MODEL OUT: a Qwen-1 checkpoint as a native Qwen2 model."""

from __future__ import annotations

import argparse
from typing import Any

from align.commands.options import add_dtype
from align.runtime.terminal import say


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "write a Qwen-1 checkpoint as a native Qwen2 model with equal logits, and its vocabulary as tokenizer.json"
    parser = commands.add_parser("convert-qwen", help=words, description=f"{words[0].upper()}{words[1:]}.")
    parser.set_defaults(work=convert_qwen_command)
    parser.add_argument("model", metavar="MODEL", help="folder or hub id (Qwen/Qwen-7B-Chat), in safetensors")
    parser.add_argument("out_dir", metavar="OUT", help="a new folder")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    add_dtype(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def convert_qwen_command(args: argparse.Namespace) -> None:
    """Convert, and say what was written and what was left out."""
    from align.models.qwen1 import convert_qwen

    done = convert_qwen(args.model, args.out_dir, dtype=args.dtype, revision=args.revision)
    say(f"{args.model} is a Qwen2 of {done.parameters / 1e9:.3g} B parameters in {args.out_dir}")
    if done.extrapolates:
        say(
            f"LogN scaling and dynamic NTK are left out: up to the {done.max_length:,} tokens that the model was "
            "trained with both change nothing, and max_position_embeddings is that now"
        )
