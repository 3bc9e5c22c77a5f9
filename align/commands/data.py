"""`align data`: look at files, count what they hold, convert and split them.

align data stats FILE|FOLDER … [--json]            rows in, records out, what was dropped and repaired, by reason
align data inspect FILE [--tokenizer MODEL]        roles, lengths, what gets loss in colour, what would be dropped
align data convert FILE|FOLDER … OUT.jsonl         all that can be read, in our own rows, one file after the other
align data split FILE OUT_DIR [--heldout 0.1]      train.jsonl and heldout.jsonl, no prompt on both sides
align data verify FILE OUT.jsonl                   demonstrations whose code passes their rows' tests, in a sandbox
align data tag FILE OUT.jsonl --url URL …          what each row is about, as tags of one vocabulary
align data train-classifier FILE OUT --label KEY   a small text classifier, or a tagger, with held-out figures
align data select FILE … OUT.jsonl [--keep 0.5]    the rows worth learning from, and a page of why
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from align.commands import select, tag, train_classifier, verify
from align.commands.kinds import KINDS
from align.commands.options import add_max_row, positive, share, source
from data_formats.chatml import MASKS


def add_parser(commands: Any) -> None:
    """Add `data` to the subparsers of `align`."""
    words = "look at, count, convert, split and choose from data files"
    data = commands.add_parser("data", help=words, description=__doc__)
    data.set_defaults(work=data_command)
    data.formatter_class = argparse.RawDescriptionHelpFormatter
    names = ("stats", "inspect", "convert", "split", "verify", "tag", "train-classifier", "select")
    what = data.add_subparsers(dest="what", metavar=" | ".join(names), required=True)
    stats = what.add_parser("stats", help="what files hold")
    stats.add_argument("paths", metavar="FILE|FOLDER|hub:ID", type=source, nargs="+")
    stats.add_argument("--json", action="store_true", help="a JSON list, one object a file")
    inspect = what.add_parser("inspect", help="one file as training sees it")
    inspect.add_argument("path", metavar="FILE|hub:ID", type=source)
    inspect.add_argument("--tokenizer", metavar="MODEL", help="folder or hub id: lengths and loss in its tokens")
    inspect.add_argument("--mask", choices=MASKS, default="assistant_only", help="what gets loss (default %(default)s)")
    inspect.add_argument("--mask-observations", action="store_true", help="no loss on observations inside replies")
    inspect.add_argument("--max-length", type=positive, metavar="N", help="say what is longer")
    inspect.add_argument("--rows", type=positive, default=5, metavar="N", help="show so many (default %(default)s)")
    inspect.add_argument("--skip", type=int, default=0, metavar="N", help="pass over so many before")
    convert = what.add_parser("convert", help="write our own rows")
    convert.add_argument("paths", metavar="FILE|FOLDER|hub:ID", type=source, nargs="+")
    convert.add_argument("out", metavar="OUT.jsonl", type=Path)
    split = what.add_parser("split", help="train and held-out by prompt")
    split.add_argument("path", metavar="FILE|hub:ID", type=source)
    split.add_argument("out", metavar="OUT_DIR", type=Path)
    split.add_argument(
        "--heldout", type=share, default=0.1, metavar="SHARE", help="of the prompts (default %(default)s)"
    )
    chosen = select.add_parser(what)
    more = [module.add_parser(what) for module in (verify, tag, train_classifier)]
    for command in (stats, inspect, convert, split, chosen, *more):
        command.add_argument("--kind", choices=list(KINDS), help="read it as these (default: the richest that fits)")
        command.add_argument("--format", default="auto", help="the format's name (default: by shape)")
        add_max_row(command)
        command.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    for command in (inspect, convert, split, chosen):
        command.add_argument("--cleaning", metavar="YAML", type=Path, help="a file with a recipe's cleaning section")


def data_command(args: argparse.Namespace) -> int:
    """Do what the parsed words say; returns the exit code."""
    options = {"format": args.format, "max_row_mb": args.max_row_mb}
    if args.what == "stats":
        from align.commands.stats import stats

        return stats(args.paths, args.kind, options, args.json)
    if args.what in ("verify", "tag", "train-classifier"):
        commands = {"verify": verify.verify, "tag": tag.tag, "train-classifier": train_classifier.train_classifier}
        commands[args.what](args, options)
        return 0
    cleaner = _cleaner(args.cleaning)
    if args.what == "inspect":
        from align.commands.inspect import View, inspect

        tokenizer = _tokenizer(args.tokenizer)
        view = View(tokenizer, args.mask, args.mask_observations, args.max_length, args.rows, args.skip)
        inspect(args.path, args.kind, options, cleaner, view)
    elif args.what == "select":
        select.select(args.paths, args.out, args.kind, options, cleaner, select.selection_of(args))
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
