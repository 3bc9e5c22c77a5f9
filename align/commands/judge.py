"""align judge ITEMS --judge JUDGE: collected replies judged without people.

ITEMS is what `align collect` wrote, or any file with several replies a prompt. A JUDGE is what `align eval` takes: a
reward (the higher score wins), a function that sees both replies (file.py:name), a RECIPE:SECTION.judge, people's
rankings in a file; NAME=JUDGE gives it a name; --judge-url and --judge-model ask a language model. The judgments are
added to the file of `align annotate`, each under the judge's name, so that people and judges are merged alike
(`align merge-judgments`).

Every two replies of an item are compared. A judge with scores also says by how much the best is better: its gaps are
cut into quarters, the widest of them "significantly". What is judged already is not judged again, also after a kill.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from align.commands.judges import Wanted, add_judges, named_judges, require_url, spent
from align.commands.options import add_dtype, positive
from align.runtime.paths import typed_path
from align.runtime.terminal import say


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    parser = commands.add_parser("judge", help="collected replies judged by rewards or models", description=__doc__)
    parser.set_defaults(work=judge_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("items", metavar="ITEMS", type=Path, help="what `align annotate` takes")
    add_judges(parser)
    words = "judgments are added to it (default: judgments.jsonl beside ITEMS)"
    parser.add_argument("--out", metavar="JUDGMENTS", type=Path, help=words)
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N items alone")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of a language model (default 0)")
    words = "replies a reward model holds at once (default 64; a recipe says its own)"
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help=words)
    add_dtype(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def judge_command(args: argparse.Namespace) -> None:
    """Judge what is not judged yet, and say what came of it.

    Raises:
        ContestError: no judge is named.
        MissingFileError, ModelFileError, RecipeError, UserCodeError, DataError: no such items or judge, or torn.
        JudgmentError: a row of JUDGMENTS that is none.
        RewardError: a judge failed; what was judged before is kept.
        OutOfMemoryError: too many replies at once.
        FolderInUseError: another process adds to JUDGMENTS.
        StorageError: JUDGMENTS cannot be written.
    """
    from align.feedback.item_files import read_items
    from align.feedback.judgments import adding_to

    require_url(args)
    out = typed_path(args.out or typed_path(args.items).with_name("judgments.jsonl"))
    judges = named_judges(args, _beside(out, "llm") / "answers.jsonl")
    items = read_items(args.items)[: args.limit]
    with adding_to(out):
        told = [_judged(args, wanted, items, out) for wanted in judges]
    if args.json:
        say(json.dumps({"judges": told, "out": str(out)}, ensure_ascii=False, indent=2))
        return
    for one in told:
        say(_sentence(one))
    say(f"{out}: `align merge-judgments {args.items} {out} --out pairs.jsonl` makes comparisons of them")


def _judged(args: argparse.Namespace, wanted: Wanted, items: list[Any], out: Path) -> dict[str, Any]:
    from align.feedback.judge import judge_items
    from align.feedback.judgments import STRENGTHS
    from align.runs.progress import StageProgress
    from align.runtime.memory import memory_errors

    with (
        memory_errors(f"the judge {wanted.name}", f"--batch-size ({args.batch_size})"),
        StageProgress(f"judged by {wanted.name}", len(items)) as progress,
    ):
        judge = wanted.judge(args, _beside(out, wanted.name))
        by = judge_items(judge, items, out, name=wanted.name, settings=wanted.settings, told=progress.update)
    usage, strengths = getattr(judge, "usage", None), Counter(one.strength for one in by.new)
    return {
        "judge": wanted.name,
        "judged_by": judge.described,
        "items": len(items),
        "judged": len(by.new),
        "judged_before": by.there,
        "without": dict(by.without),
        "note": by.note,
        "tied": sum(len(one.ranking) < 2 for one in by.new),
        "strengths": {name: strengths[name] for name in STRENGTHS[::-1] if strengths[name]},
        "usage": asdict(usage) if is_dataclass(usage) else {},
    }


def _beside(out: Path, name: str) -> Path:
    """The folder in which the answers of a language model are kept."""
    return out.with_name(f"{out.name}.{name}.answers")


def _sentence(told: dict[str, Any]) -> str:
    parts = [f"{told['judged']} judgments by {told['judged_by']} on {told['items']} items"]
    if told["judged_before"]:
        parts.append(f"{told['judged_before']} were judged before")
    if told["tied"]:
        parts.append(f"{told['tied']} without a best reply")
    parts += [f"{number} {strength}" for strength, number in told["strengths"].items()]
    parts += [f"{number} left out: {reason}" for reason, number in told["without"].items()]
    note = f" (the first time: {told['note']})" if told["note"] else ""
    return "; ".join(filter(None, [", ".join(parts) + note, spent(told["usage"])]))
