"""`align data`: look at files, count what they hold, convert and split them.

align data stats FILE|FOLDER … [--json]            rows in, records out, what was dropped and repaired, by reason
align data inspect FILE [--tokenizer MODEL]        roles, lengths, what gets loss in colour, what would be dropped
align data convert FILE|FOLDER … OUT.jsonl         all that can be read, in our own rows, one file after the other
align data split FILE OUT_DIR [--heldout 0.1]      train.jsonl and heldout.jsonl, no prompt on both sides
align data verify FILE OUT.jsonl                   demonstrations whose code passes their rows' tests, in a sandbox
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from align.commands.kinds import KINDS
from align.commands.options import add_max_row, positive
from data_formats.chatml import MASKS


def add_parser(commands: Any) -> None:
    """Add `data` to the subparsers of `align`."""
    data = commands.add_parser("data", help="look at, count, convert and split data files", description=__doc__)
    data.set_defaults(work=data_command)
    data.formatter_class = argparse.RawDescriptionHelpFormatter
    what = data.add_subparsers(dest="what", metavar="stats | inspect | convert | split | verify", required=True)
    stats = what.add_parser("stats", help="what files hold")
    stats.add_argument("paths", metavar="FILE|FOLDER|hub:ID", type=_source, nargs="+")
    stats.add_argument("--json", action="store_true", help="a JSON list, one object a file")
    inspect = what.add_parser("inspect", help="one file as training sees it")
    inspect.add_argument("path", metavar="FILE|hub:ID", type=_source)
    inspect.add_argument("--tokenizer", metavar="MODEL", help="folder or hub id: lengths and loss in its tokens")
    inspect.add_argument("--mask", choices=MASKS, default="assistant_only", help="what gets loss (default %(default)s)")
    inspect.add_argument("--mask-observations", action="store_true", help="no loss on observations inside replies")
    inspect.add_argument("--max-length", type=positive, metavar="N", help="say what is longer")
    inspect.add_argument("--rows", type=positive, default=5, metavar="N", help="show so many (default %(default)s)")
    inspect.add_argument("--skip", type=int, default=0, metavar="N", help="pass over so many before")
    convert = what.add_parser("convert", help="write our own rows")
    convert.add_argument("paths", metavar="FILE|FOLDER|hub:ID", type=_source, nargs="+")
    convert.add_argument("out", metavar="OUT.jsonl", type=Path)
    split = what.add_parser("split", help="train and held-out by prompt")
    split.add_argument("path", metavar="FILE|hub:ID", type=_source)
    split.add_argument("out", metavar="OUT_DIR", type=Path)
    split.add_argument(
        "--heldout", type=_share, default=0.1, metavar="SHARE", help="of the prompts (default %(default)s)"
    )
    verify = what.add_parser("verify", help="keep the demonstrations whose code passes their tests")
    verify.add_argument("path", metavar="FILE|hub:ID", type=_source)
    verify.add_argument("out", metavar="OUT.jsonl", type=Path)
    _add_verification(verify)
    for command in (stats, inspect, convert, split, verify):
        command.add_argument("--kind", choices=list(KINDS), help="read it as these (default: the richest that fits)")
        command.add_argument("--format", default="auto", help="the format's name (default: by shape)")
        add_max_row(command)
        command.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    for command in (inspect, convert, split):
        command.add_argument("--cleaning", metavar="YAML", type=Path, help="a file with a recipe's cleaning section")


def _add_verification(verify: argparse.ArgumentParser) -> None:
    words = "keep rows without tests whose code can be parsed (default: they fail)"
    verify.add_argument("--keep-untested", action="store_true", help=words)
    words = "keep rows that pass this share of their tests, less than 1 (default: all of them)"
    verify.add_argument("--threshold", type=_share, default=1.0, metavar="SHARE", help=words)
    verify.add_argument("--lint", action="store_true", help="also look for undefined names (ruff)")
    words = "best: also where the kernel gives no namespaces (default %(default)s)"
    verify.add_argument("--isolation", choices=("required", "best"), default="required", help=words)
    words = "of CPU for one test (default %(default)s)"
    verify.add_argument("--seconds", type=positive, default=2, metavar="S", help=words)
    verify.add_argument("--workers", type=positive, metavar="N", help="rows at once (default: the cores)")
    verify.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def _source(text: str) -> Path | str:
    return text if text.startswith("hub:") else Path(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, not '{text}'")
    return share


def data_command(args: argparse.Namespace) -> int:
    """Do what the parsed words say; returns the exit code."""
    options = {"format": args.format, "max_row_mb": args.max_row_mb}
    if args.what == "stats":
        from align.commands.stats import stats

        return stats(args.paths, args.kind, options, args.json)
    if args.what == "verify":
        from align.commands.verify import verify

        verify(args, options)
        return 0
    cleaner = _cleaner(args.cleaning)
    if args.what == "inspect":
        from align.commands.inspect import View, inspect

        tokenizer = _tokenizer(args.tokenizer)
        view = View(tokenizer, args.mask, args.mask_observations, args.max_length, args.rows, args.skip)
        inspect(args.path, args.kind, options, cleaner, view)
    elif args.what == "convert":
        from align.commands.convert import convert

        convert(args.paths, args.out, args.kind, options, cleaner)
    else:
        from align.commands.convert import split

        split(args.path, args.out, args.heldout, args.kind, options, cleaner)
    return 0


def _cleaner(file: Path | None) -> Any:
    """The steps that a YAML file switches on, written as in a recipe's `cleaning` section; None without a file.

    Raises:
        RecipeError: it holds something else.
    """
    if file is None:
        return None
    from align.data.cleaning import build_cleaner, evaluation_prompts
    from align.recipe.cleaning_section import read_cleaning

    section = read_cleaning(file)
    return build_cleaner(section, evaluation_prompts(section))


def _tokenizer(path: str | None) -> Any:
    if path is None:
        return None
    from align.models.tokenizer import load_tokenizer

    return load_tokenizer(path)
