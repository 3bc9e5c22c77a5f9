"""What several subcommands take."""

from __future__ import annotations

import argparse
from pathlib import Path

DTYPES = ("auto", "float32", "bfloat16", "float16")


def positive(text: str) -> int:
    """A whole number of at least 1, for `type=`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not '{text}'")
    return int(text)


def port(text: str) -> int:
    """A port to listen at, 0 for one that is free, for `type=`."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, not '{text}'")
    return int(text)


def add_max_row(parser: argparse.ArgumentParser) -> None:
    """`--max-row-mb` of the files that are read."""
    words = "a row's size at most (default %(default)s)"
    parser.add_argument("--max-row-mb", type=positive, default=64, metavar="MIB", help=words)


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """`--dtype` of a model's weights."""
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (default: as they are)")


def source(text: str) -> Path | str:
    """A file, or a dataset of the hub as `hub:org/name`, for `type=`."""
    return text if text.startswith("hub:") else Path(text)


def share(text: str) -> float:
    """A number between 0 and 1, for `type=`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, not '{text}'")
    return value
