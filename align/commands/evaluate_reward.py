"""align evaluate-reward MODEL DATA …: any reward model on any comparisons, without training.

MODEL is a reward model of ours (whole, or an adapter) or any `ForSequenceClassification` with one label, folder or hub
id; the latter reads the text through its own tokenizer and template. DATA are files, folders and hub datasets that can
be read as comparisons. What is told is what a reward stage tells of its held-out pairs (`align.evaluation.preference`).
What length alone gets has no training pairs to learn a direction from: it is the better of "longer wins" and "shorter
wins" on these very pairs, and both are named.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from align.commands.kinds import files_in
from align.commands.options import add_dtype, add_max_row, positive
from align.runtime import files
from align.runtime.errors import StorageError
from align.runtime.paths import typed_path
from align.runtime.terminal import say
from data_formats import Comparison, EmptyDatasetError, ReadReport, read


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "measure a reward model on comparisons"
    parser = commands.add_parser("evaluate-reward", help=words, description=__doc__)
    parser.set_defaults(work=evaluate_reward_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", help="a reward model's folder (runs/NAME/rm/model) or hub id")
    parser.add_argument("data", metavar="FILE|FOLDER|hub:ID", nargs="+", help="comparisons")
    parser.add_argument("--format", default="auto", help="the format's name (default: by shape)")
    parser.add_argument("--json", action="store_true", help="print every figure as one JSON object")
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="write eval.jsonl, most_wrong.jsonl and summary.json"
    )
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="replies at once (default 64)")
    add_max_row(parser)
    add_dtype(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def evaluate_reward_command(args: argparse.Namespace) -> None:
    """Score the comparisons, print the table or the JSON, and write the files where asked.

    Raises:
        MissingFileError, ModelFileError: no such model, torn, or no reward model.
        DataError: data that cannot be read as comparisons, or no comparison among them.
        RewardError: the model failed, or a score that is not finite.
        OutOfMemoryError: too many replies at once.
        StorageError: `--out` is a file or a stage's folder, or cannot be written.
    """
    if args.out is not None:
        args.out = _checked_out(args.out)
    comparisons, reports = _comparisons(args.data, args.format, args.max_row_mb)

    from align.evaluation.preference import evaluate, lines
    from align.evaluation.scoring import best_device, score_comparisons
    from align.runs.progress import StageProgress
    from align.runtime.memory import memory_errors
    from reward.sources import load_reward

    reward = load_reward(
        args.model, batch_size=args.batch_size, name=args.model, device=best_device(), dtype=args.dtype
    )
    short = memory_errors("the reward model", f"--batch-size ({args.batch_size})")
    with short, StageProgress("pairs", len(comparisons)) as progress:
        chosen, rejected = score_comparisons(reward, comparisons, progress.update)
    summary = {"model": args.model, "data": [_described(report) for report in reports]}
    summary |= evaluate(comparisons, chosen, rejected)
    if args.out is not None:
        for name, rows in lines(comparisons, chosen, rejected).items():
            files.write_text(args.out / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        files.write_json(args.out / "summary.json", summary)
    if args.json:
        say(json.dumps(summary, ensure_ascii=False, indent=2))
    else:
        _show(summary, reports)


def _checked_out(out: Path) -> Path:
    out = typed_path(out)
    if out.exists() and not out.is_dir():
        raise StorageError(f"--out {out}: is a file; name a folder")
    if (out / "recipe.yaml").exists():
        raise StorageError(f"--out {out}: holds a stage's own figures (its recipe.yaml is there); name another folder")
    return out


def _comparisons(data: list[str], format: str, max_row_mb: int) -> tuple[list[Comparison], list[ReadReport]]:
    """The comparisons of every file; one without a source of its own gets the file's name as source."""
    found: list[Comparison] = []
    reports = []
    paths, notes = files_in([text if text.startswith("hub:") else Path(text) for text in data])
    for note in notes:
        say(note, file=sys.stderr)
    for path in paths:
        result = read(path, Comparison, format=format, max_row_mb=max_row_mb)
        found += [pair if pair.source else replace(pair, source=str(path)) for pair in result.records]
        reports.append(result.report)
    if not found:
        said = "; ".join(report.describe() for report in reports) or "no file with a known ending"
        raise EmptyDatasetError(f"no comparison is left in {', '.join(data)} ({said})")
    return found, reports


def _described(report: ReadReport) -> dict[str, Any]:
    counts = {name: dict(getattr(report, name)) for name in ("dropped", "repaired", "left_out")}
    return {"path": report.path, "format": report.format, "rows": report.rows, "records": report.records} | counts


def _show(summary: dict[str, Any], reports: list[ReadReport]) -> None:
    """The table and what stands around it, on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from align.evaluation.table import HEADER, KINDS, accuracy_table, calibration_sentence, percent
    from align.runtime.console import Console

    console = Console(soft_wrap=True)
    for report in reports:
        console.print(Text(report.describe()))
    parts = {key: {"all pairs": summary} if key == "all" else summary[key] for key in KINDS}
    table = Table(title=Text(f"accuracy of {summary['model']}"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="left" if index < 2 else "right", overflow="fold", no_wrap=index != 1)
    for row in accuracy_table(parts):
        cells = (row.kind, row.part, row.pairs, row.accuracy, row.interval, row.length)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table, soft_wrap=False)
    rule = summary["length_rule"]
    used = "longer" if rule["longer_wins"] else "shorter"
    both = f'"longer wins" is right on {percent(rule["longer"])}, "shorter wins" on {percent(rule["shorter"])}'
    console.print(f"by length alone: {both}; the table takes {used}, the better one on these pairs")
    errors = [summary[key] for key in ("calibration_error", "calibration_error_at_temperature", "temperature")]
    console.print(calibration_sentence(*errors))
    for side, scores in summary["scores"].items():
        console.print(f"{side}: " + ", ".join(f"{name} {score:.4g}" for name, score in scores.items()))
