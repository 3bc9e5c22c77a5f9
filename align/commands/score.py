"""align score REWARD FILE … --out scored.jsonl: the score of every reply in files.

REWARD is a reward model of ours (a folder, an adapter, a run's folder: its rm stage), an export, any
`ForSequenceClassification` with one label, a Python function (file.py:name), or a recipe, whose `ppo.reward` (or
RECIPE:SECTION.reward) is built as its stage builds it: rules, endpoints, weighted lists, gates. FILEs are files,
folders and hub datasets that hold prompts with replies: demonstrations (the last reply), comparisons (both), scored and
sampled replies, `samples.jsonl` and `eval.jsonl` of our runs.

A line of --out is a reply, in the order of the files: `file`, `row`, `index` among the row's replies (of a comparison
the chosen one is 0), `prompt`, `reply`, `score`, and `parts` where the reward is made of several. What is scored is
kept in OUT.pieces until all is: after a kill, the same command goes on and writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from align.commands.kinds import files_in, kind_of
from align.commands.options import add_dtype, add_max_row, positive
from align.data.replies import KINDS, Placed, RepliesOfFile, kind_named
from align.runtime import files
from align.runtime.errors import StorageError
from align.runtime.paths import typed_path
from align.runtime.pieces import Pieces, pieces_in
from align.runtime.terminal import say
from data_formats import DataError, EmptyDatasetError
from data_formats.records import Prompt
from data_formats.writing import as_row


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    parser = commands.add_parser("score", help="score every reply in files with any reward", description=__doc__)
    parser.set_defaults(work=score_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("reward", metavar="REWARD", help="a model, a run, file.py:name, RECIPE or RECIPE:ppo.reward")
    parser.add_argument("data", metavar="FILE|FOLDER|hub:ID", nargs="+", help="prompts with replies")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="a new file of JSON Lines")
    parser.add_argument("--format", default="auto", help="the format's name (default: by shape)")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N replies alone")
    words = "replies a model holds at once (default 64; a recipe says its own)"
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help=words)
    words = "what becomes of a reward that fails (default: as its recipe says, else stop)"
    parser.add_argument("--on-reward-error", choices=("stop", "retry", "mask"), help=words)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    add_max_row(parser)
    add_dtype(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def score_command(args: argparse.Namespace) -> None:
    """Score what is not scored yet, join the pieces, print the figures.

    Raises:
        MissingFileError, ModelFileError, RecipeError: no such reward, torn, or with errors.
        DataError: data that cannot be read as replies, or no reply among them.
        RewardError: the reward failed, or gave a score that is not finite; what was scored before is kept.
        OutOfMemoryError: too many replies at once.
        StorageError: `--out` exists, or cannot be written; pieces of another command lie beside it.
    """
    out = typed_path(args.out)
    if out.exists():
        raise StorageError(f"--out {out} exists already: remove it, or name another file")
    sources = _sources(args)
    total = sum(1 for _ in _limited(sources, args.limit))  # a row that cannot be read is told before anything is scored
    if not total:
        said = "; ".join(source.describe() for source in sources) or "no file with a known ending"
        raise EmptyDatasetError(f"no reply is left in {', '.join(args.data)} ({said})")
    folder = out.with_name(f"{out.name}.pieces")
    scores: list[float | None] = []
    with pieces_in(folder, _settings(args, sources), command="score") as pieces:
        count = _score_pieces(args, sources, total, pieces)
        files.write_json_lines(out, _told(pieces.rows(count), scores))
    _show(args, sources, scores)


def _sources(args: argparse.Namespace) -> list[RepliesOfFile]:
    paths, notes = files_in([text if text.startswith("hub:") else Path(text) for text in args.data])
    for note in notes:
        say(note, file=sys.stderr)
    options = {"format": args.format, "max_row_mb": args.max_row_mb}
    return [RepliesOfFile(path, _kind(path, options), **options) for path in paths]


def _kind(path: Path | str, options: dict[str, Any]) -> Any:
    if options["format"] != "auto":
        return kind_named(options["format"])
    kind = kind_of(path, options)
    if kind not in KINDS:
        raise DataError(f"holds {kind.__name__.lower()}s, without replies to be scored", path=path)
    return kind


def _limited(sources: Sequence[RepliesOfFile], limit: int | None) -> Iterator[Placed]:
    return islice(chain.from_iterable(sources), limit)


def _settings(args: argparse.Namespace, sources: Sequence[RepliesOfFile]) -> dict[str, Any]:
    """What decides the scores."""
    from align.serving.named import reward_stamp

    names = ("reward", "format", "limit", "batch_size", "on_reward_error", "dtype", "max_row_mb")
    settings = {name: getattr(args, name) for name in names}
    settings["data"] = [[str(source.path), *files.stamp(source.path)] for source in sources]
    return settings | {"the reward's files": reward_stamp(args.reward)}


def _score_pieces(args: argparse.Namespace, sources: Sequence[RepliesOfFile], total: int, pieces: Pieces) -> int:
    """Make the pieces that are not there; returns how many there are of them all."""
    from align.evaluation.scoring import AT_ONCE, best_device, judge_replies
    from align.runs.progress import StageProgress
    from align.runtime.memory import memory_errors
    from align.serving.named import named_reward
    from reward.protocol import RewardError

    @cache
    def named() -> Any:
        return named_reward(args.reward, batch_size=args.batch_size, device=best_device(), dtype=args.dtype)

    def scored(some: list[Placed], number: int) -> Iterator[dict[str, Any]]:
        try:
            told = judge_replies(named().reward, [one.reply for one in some], args.on_reward_error or named().on_error)
        except RewardError as error:
            first, last = (f"row {one.row} of {one.file}" for one in (some[0], some[-1]))
            kept = f"; what is scored is kept in {pieces.folder}, the same command goes on" if number else ""
            raise RewardError(f"{error}; that was among the replies from {first} to {last}{kept}") from error
        return _lines(some, *told)

    replies, count = _limited(sources, args.limit), -(-total // AT_ONCE)
    short = memory_errors("the reward", f"--batch-size ({args.batch_size})")
    with short, StageProgress("replies", total) as progress:
        for number in range(count):
            pieces.make(number, partial(scored, list(islice(replies, AT_ONCE)), number))
            progress.update(min((number + 1) * AT_ONCE, total))
    return count


def _lines(some: Sequence[Placed], verdict: Any, failures: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A line a reply; one without a score has null, and why."""
    why = iter(failures)
    for at, (one, score) in enumerate(zip(some, verdict.scores, strict=True)):
        asked, columns = one.reply, one.reply.columns
        row = {"file": one.file, "row": one.row, "index": one.index}
        row |= as_row(Prompt(asked.prompt, columns["category"], tools=asked.tools))
        row |= {"reply": asked.reply, "score": _known(score)}
        if verdict.parts:
            row["parts"] = {name: _known(scores[at]) for name, scores in verdict.parts.items()}
        yield row if row["score"] is not None else row | {"error": next(why)}


def _known(score: float) -> float | None:
    """None for a score that is none (NaN)."""
    return score if score == score else None


def _told(rows: Iterable[dict[str, Any]], scores: list[float | None]) -> Iterator[dict[str, Any]]:
    """The rows, whose scores are added to `scores`."""
    for row in rows:
        scores.append(row["score"])
        yield row


def _show(args: argparse.Namespace, sources: Sequence[RepliesOfFile], scores: Sequence[float | None]) -> None:
    from align.evaluation.distribution import distribution, lines

    figures = distribution([score for score in scores if score is not None])
    figures |= {"failed": scores.count(None), "reward": args.reward, "out": str(args.out)}
    if args.json:
        say(json.dumps(figures, ensure_ascii=False, indent=2))
        return
    for source in sources:
        say(source.describe())
    failed = f", {figures['failed']} more that it failed on" if figures["failed"] else ""
    say(f"{figures['count']} replies scored by {args.reward}{failed}: {args.out}")
    for line in lines(figures):
        say(line)
