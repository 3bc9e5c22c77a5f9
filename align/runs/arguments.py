"""argparse, extended so that overrides and options may stand in any order."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def add_overrides(parser: argparse.ArgumentParser, example: str = "ppo.kl_coef=0.1") -> None:
    """The words `key=value`, of which there may be none: argparse says so only where there is a default."""
    help = f"overrides, for example {example}"
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=help)


def parse_with_overrides(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse `argv` where `key=value` words may come before, between and after options.

    argparse alone stops taking positional words at the first option that follows them; what it leaves over is added to
    `overrides` when it is a `key=value`, and is an error otherwise.
    """
    args, rest = parser.parse_known_args(argv)
    takes = hasattr(args, "overrides")
    strange = [word for word in rest if word.startswith("-") or "=" not in word or not takes]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:
        kept = [word for word in argv if word in args.overrides or word in rest]
        args.overrides = kept
    return args
