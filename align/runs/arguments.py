"""argparse, extended so that overrides and options may stand in any order, and what starts stages anew."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

FRESH, START, YES = "--fresh", "--from", "--yes"


def add_redoing(parser: argparse.ArgumentParser, *, chain: bool) -> None:
    """Add the options that say what is done anew and which changes are gone on with.

    Args:
        chain: whether several stages run, some of which may be named.
    """
    if chain:
        words = "start everything anew, or the stages named (or round-2, round-2/ppo), with what builds on them"
        parser.add_argument(FRESH, type=_stages, metavar="[STAGE ...]", default=False, help=words)
        words = "start this stage and all later ones anew"
        parser.add_argument(START, dest="start", metavar="STAGE", help=words)
    else:
        words = "start the stage anew instead of continuing it"
        parser.add_argument(FRESH, type=_stages, metavar="[STAGE]", default=False, help=words)
    words = "go on although this key of the recipe (or the rows it names) changed; may be given again"
    parser.add_argument("--accept", metavar="KEY", action="append", default=[], help=words)
    parser.add_argument(YES, action="store_true", help="remove a whole run without being asked")


def _stages(text: str) -> bool | tuple[str, ...]:
    return tuple(name for name in text.split(",") if name) or True


def add_overrides(parser: argparse.ArgumentParser, example: str = "ppo.kl_coef=0.1") -> None:
    """The words `key=value`, of which there may be none: argparse says so only where there is a default."""
    help = f"overrides, for example {example}"
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=help)


def parse_with_overrides(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse `argv` where `key=value` words may come before, between and after options.

    argparse alone stops taking positional words at the first option that follows them; what it leaves over is added to
    `overrides` when it is a `key=value`, and is an error otherwise.
    """
    argv = _joined(argv)
    args, rest = parser.parse_known_args(argv)
    takes = hasattr(args, "overrides")
    strange = [word for word in rest if word.startswith("-") or "=" not in word or not takes]
    if strange:
        dashed = takes and any(word.startswith("--") for word in strange)
        hint = "; keys of the recipe are written without dashes, ppo.kl_coef=0.1" if dashed else ""
        parser.error(f"unrecognized arguments: {' '.join(strange)}{hint}")
    if rest:
        kept = [word for word in argv if word in args.overrides or word in rest]
        args.overrides = kept
    return args


def _joined(argv: Sequence[str]) -> list[str]:
    """`--fresh sft rm` as one word, `--fresh=sft,rm`; what follows and names neither (RECIPE) is left alone."""
    if FRESH not in argv:
        return list(argv)
    from align.recipe.registry import STAGES
    from align.recipe.rounds import ROUND

    words: list[str] = []
    names: list[str] | None = None
    for word in argv:
        if word == FRESH:
            names = []
            words.append(f"{FRESH}=")
        elif names is not None and (word in STAGES or ROUND.fullmatch(word)):
            names.append(word)
            words[-1] = f"{FRESH}={','.join(names)}"
        else:
            names = None
            words.append(word)
    return words


def without_redoing(argv: Sequence[str]) -> list[str]:
    """The words of a command line that goes on with what this one does: not to be started anew once more."""
    kept: list[str] = []
    skip = False
    for word in _joined(argv):
        if not skip and not word.startswith((f"{FRESH}=", f"{START}=")) and word not in (START, YES):
            kept.append(word)
        skip = word == START
    return kept
