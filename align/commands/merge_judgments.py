"""align merge-judgments ITEMS JUDGMENTS … --out pairs.jsonl: what people and judges said, as comparisons to train on.

ITEMS is what was judged, JUDGMENTS what `align annotate` and `align judge` wrote about it. A line of --out is a
comparison that `pmp`, `rm` and `dpo` read: its grade is the strength (4 significantly, 3 better, 2 slightly, 1
negligibly: what `margin` and `min_grade` understand), its tags are those of the prompt, with `edited` and
`rejected_unsafe` where that is so, and `provenance` says who preferred which reply of whom.

A pair of replies is written once, where more than half of those who judged it prefer the same one (--votes all: once a
judgment, as each says). An edited reply stands above the one it was made of and what that was found better than. A
reply that anybody flagged as unsafe is never chosen. What is left out is counted by reason. Said of everybody who
judged: how far they agree, whether they lean to what is shown first or to what is longer, and how often they are wrong.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from align.runtime.errors import MissingFileError, StorageError
from align.runtime.paths import typed_path
from align.runtime.terminal import say

STRENGTHS = ("significantly", "better", "slightly", "negligibly")  # as of align.feedback.judgments, the widest first
WORK = ("annotator", "judgments", "median seconds", "no best", "all bad", "unsafe", "edited")
LEANS = ("annotator", "best shown first", "by chance", "chose the longer", "length weight", "wrong", "on shared pairs")

LEGEND = """\
by chance: if the order in which replies are shown did not matter; length weight: what a much longer reply gains, in
log-odds; wrong: how often the choice is the worse reply, estimated from what everybody chose (95 % intervals)"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "what was said of collected replies, as comparisons"
    parser = commands.add_parser("merge-judgments", help=words, description=__doc__)
    parser.set_defaults(work=merge_judgments_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("items", metavar="ITEMS", type=Path, help="what was judged: a file of `align collect`, …")
    parser.add_argument("judgments", metavar="JUDGMENTS", type=Path, nargs="+", help="what was said of these items")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="a new file of JSON Lines")
    words = "a pair as most who judged it say, or once a judgment (default %(default)s)"
    parser.add_argument("--votes", choices=("majority", "all"), default="majority", help=words)
    words = "all pairs of ranks, or the best replies against the others (default %(default)s)"
    parser.add_argument("--pairs", choices=("all", "best"), default="all", help=words)
    words = "leave out pairs that are known to be closer; those without a strength stay, as with min_grade"
    parser.add_argument("--min-strength", choices=STRENGTHS, help=words)
    words = "also pairs among replies all of which are called bad, where they were ranked"
    parser.add_argument("--all-bad", action="store_true", help=words)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def merge_judgments_command(args: argparse.Namespace) -> None:
    """Merge, write and tell.

    Raises:
        MissingFileError, DataError: no such file, or rows that are no items.
        JudgmentError: a row that is no judgment, or one of other items.
        EmptyDatasetError: nobody judged anything, or no comparison is left; nothing is written.
        StorageError: FILE is one of those that are read, or cannot be written.
    """
    from align.feedback.item_files import read_items
    from align.feedback.judgments import load_rows
    from align.feedback.merge import MergeOptions
    from align.feedback.pairs import write_pairs

    out, files = typed_path(args.out), [typed_path(file) for file in (args.items, *args.judgments)]
    if out.suffix != ".jsonl":
        raise StorageError(f"--out {out}: what is written is JSON Lines: name a file that ends in .jsonl")
    for file in files:
        if not file.is_file():
            raise MissingFileError(f"{file}: no such file; check the path")
        if out.exists() and out.samefile(file):
            raise StorageError(f"--out {out} is a file that is read: name another one")
    items = read_items(args.items)
    rows = list(_by_time(load_rows(file) for file in files[1:]))
    options = MergeOptions(args.votes, args.pairs, args.min_strength, args.all_bad)
    figures = write_pairs(items, rows, out, options, source=files[1]) | {"out": str(out)}
    say(json.dumps(figures, ensure_ascii=False, indent=2) if args.json else "\n".join(_lines(figures)))


def _by_time(of_files: Iterable[Sequence[Any]]) -> Iterator[Any]:
    """The rows of all files, since the latest judgment of an annotator on an item counts; those of one stay in its
    order, also where a clock was set back."""
    timed = [zip(accumulate((row.time for row in rows), max), rows, strict=True) for rows in of_files]
    yield from (row for _, row in sorted(chain.from_iterable(timed), key=itemgetter(0)))


def _lines(figures: dict[str, Any]) -> Iterator[str]:
    """The figures in words."""
    from align.evaluation.win_table import agreement_table
    from align.runtime.table import table

    many = "s" * (len(figures["annotators"]) != 1)
    yield (
        f"{figures['judgments']} judgments by {len(figures['annotators'])} annotator{many} on "
        f"{figures['judged_items']} of {figures['items']} items"
    )
    if figures["of_other_items"]:
        yield f"{figures['of_other_items']} more judgments are on items that are not in the file"
    kinds = [f"{number} {name}" for name, number in figures["by_strength"].items() if number and name != "unsaid"]
    kinds += [f"{figures['by_strength']['unsaid']} without a strength"] * bool(figures["by_strength"]["unsaid"])
    kinds += [f"{figures['edited']} of them edited"] * bool(figures["edited"])
    yield f"{figures['out']}: {figures['comparisons']} comparisons for pmp, rm or dpo ({', '.join(kinds)})"
    if figures["left_out"]:
        yield "pairs of replies that gave no comparison:"
        yield table(("reason", "pairs"), figures["left_out"].items())
    yield ""
    if len(figures["annotators"]) > 1:
        yield agreement_table(figures["agreement"]).text()
    everybody = figures["annotators"].items()
    counts = ("judgments", "seconds", "tied", "all_bad", "unsafe", "edited")
    yield table(WORK, [(name, *(round(one[count]) for count in counts)) for name, one in everybody])
    yield ""
    yield table(LEANS, [(name, *_leans(one)) for name, one in everybody])
    yield LEGEND


def _leans(one: dict[str, Any]) -> Iterator[object]:
    from align.evaluation.table import percent

    first, longer, error = one["first_shown"], one["longer"], one["error"]
    yield _share(first, "share")
    yield "" if first["expected"] is None else percent(first["expected"])
    yield _share(longer, "share")
    yield "" if longer["weight"] is None else f"{longer['weight']:+.2f}"
    yield "" if error is None else _share(error, "rate")
    yield "" if error is None else error["pairs"]


def _share(part: dict[str, Any], name: str) -> str:
    from align.evaluation.table import percent

    if part[name] is None:
        return ""
    return f"{percent(part[name])} ({100 * part['low']:.1f} to {100 * part['high']:.1f})"
