"""align reward-card MODEL --data FOLDER: a reward judged by the public benchmarks, from their files on disk.

MODEL is anything that `align score` takes: a reward model's folder or hub id, an adapter, a run, a Python function
(file.py:name), a recipe's reward. FOLDER holds benchmarks as they are downloaded, in any folders below and any mixture;
they are known by their rows: RewardBench 1 (with its prior sets) and 2, RM-Bench, JudgeBench, PPE (human preference and
correctness), HelpSteer2 and 3, SHP, HH. What is not there is said, what is not known is named.

Each is counted by its published formula, with an interval, beside what length alone gets, the accuracy where the right
reply is the shorter, and the calibration. --out writes card.json, index.html and card.md, and keeps the scores: after a
kill, or once more, the same command goes on with them. --write puts the table into the README.md of MODEL's folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from align.commands.options import add_dtype, add_max_row, positive
from align.runtime import files
from align.runtime.errors import MissingFileError, StorageError
from align.runtime.paths import typed_path
from align.runtime.terminal import say

SCORES = "scores.pieces"  # in --out


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "judge a reward by public benchmarks"
    parser = commands.add_parser("reward-card", help=words, description=__doc__)
    parser.set_defaults(work=reward_card_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", help="a model, a run, file.py:name, RECIPE or RECIPE:ppo.reward")
    parser.add_argument("--data", metavar="FOLDER", type=Path, required=True, help="the benchmarks' files")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="write card.json, index.html and card.md there")
    parser.add_argument("--write", action="store_true", help="put the table into the README.md of MODEL's folder")
    parser.add_argument("--limit", type=positive, metavar="N", help="a quick look: N rows of each part")
    words = "replies a model holds at once (default 64; a recipe says its own)"
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help=words)
    parser.add_argument("--json", action="store_true", help="print the card as one JSON object")
    add_max_row(parser)
    add_dtype(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def reward_card_command(args: argparse.Namespace) -> None:
    """Find the benchmarks, score their replies, print and write the card.

    Raises:
        MissingFileError, ModelFileError, RecipeError: no such folder or reward, torn, or with errors.
        DataError: a row of a benchmark that is not what it should be, or no benchmark in the folder.
        RewardError: the reward failed, or gave a score that is not finite; what was scored before is kept in --out.
        OutOfMemoryError: too many replies at once.
        StorageError: --out cannot be written, or holds scores of another command.
    """
    from align.evaluation.reward_card.card import make_card
    from align.evaluation.reward_card.finding import find
    from align.evaluation.reward_card.markdown import block, write_block

    out = None if args.out is None else _checked_out(args.out)
    model_folder = _model_folder(args.model) if args.write else None
    found = find(args.data, limit=args.limit, max_row_mb=args.max_row_mb)
    if not args.json:
        _show_files(found)
    scores, made = _scores(args, found, out)
    card = make_card(found, scores, model=args.model, limit=args.limit) | {"made": made}
    if out is not None:
        from align.report.reward_card import render

        files.write_json(out / "card.json", card)
        files.write_text(out / "card.md", block(card))
        files.write_text(out / "index.html", render(card))
    if args.json:
        say(json.dumps(card, ensure_ascii=False, indent=2))
    else:
        _show(card)
    if out is not None and not args.json:
        say(f"{out}: card.json, index.html, card.md")
    if model_folder is not None:
        file = write_block(model_folder, card)
        if not args.json:
            say(f"{file}: the table is in it")


def _checked_out(out: Path) -> Path:
    out = typed_path(out)
    if out.exists() and not out.is_dir():
        raise StorageError(f"--out {out}: is a file; name a folder")
    return out


def _model_folder(word: str) -> Path:
    from align.models.named import reward_at

    folder = Path(reward_at(word)) if typed_path(word).is_dir() else Path(word)
    if not folder.is_dir():
        raise MissingFileError(f"--write: {word} is no model's folder, which has a README.md of its own")
    return folder


def _scores(args: argparse.Namespace, found: Any, out: Path | None) -> tuple[dict[str, Any], str]:
    """The scores of every benchmark's cases, and how they were made, in words."""
    from align.evaluation.reward_card.scoring import score_cases
    from align.evaluation.scoring import best_device
    from align.runs.progress import StageProgress
    from align.runtime.card import versions
    from align.runtime.memory import memory_errors
    from align.runtime.pieces import pieces_in
    from align.serving.named import named_reward, reward_stamp

    device = best_device()

    @cache
    def reward() -> Any:
        return named_reward(args.model, batch_size=args.batch_size, device=device, dtype=args.dtype).reward

    settings: dict[str, Any] = {name: getattr(args, name) for name in ("model", "batch_size", "dtype", "limit")}
    settings["the reward's files"] = reward_stamp(args.model)
    settings["data"] = [[file.name, *files.stamp(args.data / file.name)] for file in found.files]
    cases = [case for own in found.cases.values() for case in own]
    replies = sum(len(case.replies) for case in cases)
    with ExitStack() as stack:
        folder = out / SCORES if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory())) / SCORES
        pieces = stack.enter_context(pieces_in(folder, settings, command="reward-card", keep=True))
        stack.enter_context(memory_errors("the reward", f"--batch-size ({args.batch_size})"))
        progress = stack.enter_context(StageProgress("replies", replies))
        every = iter(score_cases(cases, reward, pieces, progress.update))
        scores = {key: [next(every) for _ in own] for key, own in found.cases.items()}
    weights = "" if args.dtype == "auto" else f", weights in {args.dtype}"
    return scores, f"{replies} replies on {device.type}{weights}; {versions()}"


def _show_files(found: Any) -> None:
    from align.evaluation.reward_card.benchmarks import BY_KEY

    for file in found.files:
        left = "".join(f", {count} left out: {reason}" for reason, count in file.left_out.items())
        say(f"{file.name}: {BY_KEY[file.benchmark].name}, {file.rows} row{'s' * (file.rows != 1)}{left}")
    for name, why in found.passed_over.items():
        say(f"{name}: passed over, {why}")


def _show(card: Mapping[str, Any]) -> None:
    """The tables, on standard output."""
    from align.evaluation.reward_card.markdown import interval, not_whole, of_rows
    from align.evaluation.table import percent

    rows: list[Sequence[str]] = []
    for one in card["benchmarks"].values():
        if one["overall"] is not None:
            rows.append((one["name"], *_cells(one["overall"], of_rows(one), interval)))
        for heading, parts in one["parts"].items():
            rows.append((f"  by {heading}", *("",) * 5))
            rows += [(f"    {name}", *_cells(part, str(part["n"]), interval)) for name, part in parts.items()]
    title = f"{card['model']} by public benchmarks"
    _print_table(title, ("benchmark", "score", "95 % interval", "longer", "shorter", "n"), rows)
    rows = []
    for one in card["benchmarks"].values():
        if one["by_length"]:
            by = [one["by_length"].get(f"the right reply {side}") for side in ("longer", "shorter")]
            told = ["" if part is None else f"{percent(part['score'])} of {part['n']}" for part in by]
            rows.append((one["name"], *told, percent(one["calibration_error"])))
    if rows:
        header = ("benchmark", "right one longer", "right one shorter", "calibration error")
        _print_table("where length helps and where it misleads; calibration", header, rows)
    if (rm_bench := card["benchmarks"].get("rm_bench")) is not None:
        styles, matrix = rm_bench["styles"], rm_bench["matrix"]
        cells = [(style, *map(percent, row)) for style, row in zip(styles, matrix, strict=True)]
        header = ("right reply", *(f"wrong: {style}" for style in styles))
        _print_table("RM-Bench by style: above the diagonal hard, below it easy", header, cells)
    if told := [words for one in card["benchmarks"].values() if (words := not_whole(one))]:
        say(f"not whole, so not to be compared with published figures: {'; '.join(told)}")
    if card["missing"]:
        say(f"not in the folder: {', '.join(card['missing'])}")
    if card["limit"] is not None:
        say(f"a quick look at {card['limit']} rows of each part: no figure to compare with others'")


def _cells(one: Mapping[str, Any], rows: str, interval: Any) -> tuple[str, ...]:
    from align.evaluation.table import percent

    return percent(one["score"]), interval(one), percent(one["longer"]), percent(one["shorter"]), rows


def _print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table whose first column is words."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from align.runtime.console import Console

    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", overflow="fold", no_wrap=index > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
