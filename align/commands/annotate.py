"""align annotate FILE: people compare collected replies on a page of this machine.

FILE is what `align collect` wrote, or any file with several replies a prompt (scores, comparisons, samples). The page
shows two to nine replies side by side, as text, to whoever opens the printed address, under a name of their choice.
Each judgment is on the disk, in --out, before the page goes on: ending the program, in whatever way, loses nothing. It
listens on loopback alone. --export and --import do the same with CSV files, Argilla and Label Studio.
"""

from __future__ import annotations

import argparse
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from align.commands.options import port
from align.runs.interrupt import until_told
from align.runtime.terminal import say

TOOLS = ("csv", "argilla", "label-studio")


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "have people compare replies, on a page or in another tool"
    parser = commands.add_parser("annotate", help=words, description=__doc__)
    parser.set_defaults(work=annotate_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", metavar="FILE", help="collected items, or any file with several replies a prompt")
    words = "judgments are added to it (default: judgments.jsonl beside FILE); of --export, a folder"
    parser.add_argument("--out", metavar="PATH", help=words)
    parser.add_argument("--guideline", metavar="FILE", help="a text that annotators see above the items")
    words = "of the items, that every annotator gets; each of the others goes to one (default %(default)s)"
    parser.add_argument("--overlap", type=_share, default=0.2, metavar="SHARE", help=words)
    parser.add_argument("--port", type=port, default=8400, help="default %(default)s; 0: one that is free")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--export", choices=TOOLS, help="write the items for this tool instead")
    how.add_argument("--import", dest="imported", metavar="FILE", help="add a tool's export to the judgments instead")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not '{text}'")
    return share


def annotate_command(args: argparse.Namespace) -> None:
    """Export, import, or show the page until a signal comes.

    Raises:
        MissingFileError, DataError, RunFileError: no such file, or none of replies.
        AnnotationError: it holds nothing to compare.
        JudgmentError: the file of judgments is damaged.
        FolderInUseError: another process adds to it.
        AddressInUseError: nothing can listen there.
    """
    from align.feedback.annotation import AnnotationError, fit_to_show
    from align.feedback.item_files import read_items
    from align.feedback.judgments import adding_to
    from align.runtime.paths import typed_path

    items, others = fit_to_show(read_items(args.file))
    if not items:
        raise AnnotationError(f"{args.file}: no prompt has two to nine replies ({others} have fewer or more)")
    if others:
        say(f"{others} prompts have one reply, or more than nine, and are left out")
    guideline = _guideline(args.guideline)
    if args.export:
        from align.feedback.exchange import export_items

        folder = args.out or f"{Path(args.file).with_suffix('')}-{args.export}"
        for file in export_items(items, args.export, folder, guideline):
            say(file)
        return
    out = typed_path(args.out or Path(args.file).with_name("judgments.jsonl"))
    with adding_to(out):
        if args.imported:
            _import(items, args.imported, out)
        else:
            _serve(args, items, out, guideline)


def _guideline(path: str | None) -> str:
    from align.runtime.errors import MissingFileError
    from align.runtime.json_files import read_text

    if path is None:
        return ""
    if not Path(path).is_file():
        raise MissingFileError(f"{path}: no such file; --guideline names a text")
    return read_text(Path(path))


def _import(items: Any, path: str, out: Path) -> None:
    from align.feedback.exchange import import_judgments
    from align.feedback.judgments import load_rows
    from align.runtime.files import append_json_lines

    judgments, empty = import_judgments(items, path)
    known, now = {row.id for row in load_rows(out)}, {"time": datetime.now(UTC).isoformat(timespec="seconds")}
    new = [one.as_row() | now for one in judgments if one.id not in known]
    append_json_lines(out, new)
    told = [f"{len(judgments) - len(new)} there already"] * (len(new) < len(judgments))
    told += [f"{empty} rows nobody has annotated"] * (empty > 0)
    say(f"{out}: {len(new)} judgments added" + (f" ({', '.join(told)})" if told else ""))


def _serve(args: argparse.Namespace, items: Any, out: Path, guideline: str) -> None:
    from align.feedback.annotation import Annotation
    from align.feedback.annotation_server import AnnotationServer
    from align.runtime.address import http_url, listen

    annotation = Annotation(items, out, args.overlap)
    listening = listen("127.0.0.1", args.port)
    token = secrets.token_urlsafe(24)
    server = AnnotationServer(annotation, token, guideline)
    shared = len(annotation.overlap)
    say(f"{len(items)} items, {shared} of them for every annotator, {len(items) - shared} for one each")
    say(f"judgments are added to {out}")
    url = http_url("127.0.0.1", listening.getsockname()[1])
    say(f"open {url}/?token={token} (Ctrl-C ends it)", flush=True)
    with until_told():
        server.serve(listening)
    say("ended")
