"""align eval A B … --prompts FILE --judge JUDGE: who wins, by whose judgment.

A, B, … are the earlier and the later model, or several: a model's or an adapter's folder, a hub id, a run (its newest
policy) or its stage (runs/x/sft), or a file of replies (of our eval.jsonl one policy's: FILE:ppo). NAME=A gives one a
name. Each answers the prompts, greedily or as --num-samples and --temperature say.

A JUDGE is a reward as `align score` takes it (the higher score wins), a function that sees both replies (file.py:name,
with `first` and `second` among its parameters), people (a file of rankings: CSV, JSON Lines), or what a recipe names
(RECIPE:ppo.judge). NAME=JUDGE gives it a name. --judge-url and --judge-model ask a language model behind an
OpenAI-compatible endpoint. With several judges the table says how far they agree. Without --prompts rankings alone are
counted: A B … are models of the file, or all are.

OUT holds the replies of each model, the judgments of each judge, and the tables as wins.json and wins.md. What is there
already is kept, whatever is new or changed is made: after a kill, and with one more model or judge, the same command
goes on.

With --tax nothing is judged: A and B are measured before and after on what pretraining had taught (a RUN alone: the
model that it began with, and its newest policy). Held-out loss on --documents (default: those that the run's base stage
held out), and tasks of the lm-evaluation-harness by --lm-eval. A run's tax.json is shown in its report.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from align.commands.contestants import (
    ContestError,
    alias,
    contestants,
    digest,
    replies_of,
    require_different,
)
from align.commands.judges import Wanted, add_judges, named_judges, require_url, spent
from align.commands.options import add_dtype, add_max_row, positive
from align.runtime import files
from align.runtime.lock import locked
from align.runtime.made import MadeWith
from align.runtime.paths import typed_path
from align.runtime.terminal import say

WINS = "wins"
OURS = frozenset({"replies", "judgments"})  # folders of which OUT has one, if anything


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    parser = commands.add_parser("eval", help="who wins of several models, and who says so", description=__doc__)
    parser.set_defaults(work=eval_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("models", metavar="[NAME=]MODEL|RUN|FILE", nargs="*", help="the earlier one first")
    parser.add_argument("--prompts", metavar="FILE|hub:ID", help="what they are asked")
    add_judges(parser)
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="default: eval-A-B")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N prompts, or documents, alone")
    parser.add_argument("--system", metavar="TEXT", default="", help="the system turn of prompts without one")
    parser.add_argument("--num-samples", type=positive, default=1, metavar="N", help="replies to a prompt (default 1)")
    words = "default 0 (greedy), or 1 with --num-samples"
    parser.add_argument("--temperature", type=float, metavar="X", help=words)
    parser.add_argument("--max-tokens", type=positive, default=512, metavar="N", help="of a reply (default 512)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--engine", choices=("auto", "hf", "vllm"), default="auto", help="as of `align chat`")
    words = "replies a reward model holds at once (default 64; a recipe says its own)"
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help=words)
    parser.add_argument("--tax", action="store_true", help="the loss on plain text before and after, instead")
    parser.add_argument("--documents", metavar="FILE|hub:ID", action="append", default=[], help="for --tax; repeatable")
    parser.add_argument("--lm-eval", metavar="TASK,…", help="for --tax: tasks of the harness, or their YAML files")
    words = "for --tax: tokens that one is predicted from at most (default 512, or what the models have room for)"
    parser.add_argument("--block-length", type=positive, default=512, metavar="N", help=words)
    add_max_row(parser)
    add_dtype(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def eval_command(args: argparse.Namespace) -> None:
    """Answer, judge and count what is not there yet; print the tables.

    Raises:
        ContestError: models, replies or judges that cannot be put against each other; a judge without a verdict.
        MissingFileError, ModelFileError, NotAPolicyError, RecipeError, UserCodeError: nothing there, torn, or none.
        ChatError: a prompt that is too long for a model.
        DataError: prompts, replies or rankings that cannot be read.
        RewardError: a judge failed; what was judged before is kept.
        HarnessError, MissingPackageError: a task of --lm-eval that cannot be run.
        OutOfMemoryError: too many replies at once.
        StorageError: OUT cannot be written.
    """
    _require_together(args)
    if args.tax:
        from align.commands.tax import tax

        tax(args)
        return
    if args.prompts is None:
        _count_rankings(args)
        return
    models, params = contestants(args.models), _sampling(args)
    out = typed_path(args.out or "-".join(["eval", *(one.name for one in models)]))
    judges = named_judges(args, out / "judgments" / "llm.answers.jsonl")
    prompts = _prompts(args)
    _require_ours(out)
    with locked(out, ["eval"]):
        made, size = MadeWith(out), {"engine": args.engine, "max_row_mb": args.max_row_mb}
        replies = {one.name: replies_of(one, prompts, params, made, **size) for one in models}
        judged = [_judged(args, judge, prompts, replies, made) for judge in judges]
        about = {
            "prompts": args.prompts,
            "sampling": asdict(params) | {"system": args.system},
            "contestants": {one.name: f"{one.path}:{one.policy}".rstrip(":") for one in models},
        }
        _show(args, out, about, judged)


def _require_together(args: argparse.Namespace) -> None:
    """Raises ContestError for an option that would do nothing."""
    judging = {"--prompts": args.prompts, "--judge": args.judge, "--judge-url": args.judge_url}
    if args.tax and (given := [name for name, value in judging.items() if value]):
        raise ContestError(f"with --tax nothing is judged: leave {given[0]} out, or --tax")
    require_url(args)
    for name, value in (("--documents", args.documents), ("--lm-eval", args.lm_eval)):
        if value and not args.tax:
            raise ContestError(f"{name} is for --tax: give that too, or leave {name} out")


def _require_ours(out: Path) -> None:
    """Raises ContestError for a folder of something else."""
    there = {one.name for one in out.iterdir()} - {".locks", "settings.json"} if out.is_dir() else set()
    if there and not there & OURS:
        raise ContestError(f"{out} holds something else ({min(there)}): name another folder with --out, or remove it")


def _count_rankings(args: argparse.Namespace) -> None:
    """The tables of people's rankings alone."""
    from align.evaluation.contest import Judged, ranked_rows
    from align.serving.named import is_rankings, named_judge

    if not args.judge or args.judge_url or not all(is_rankings(alias(word)[1]) for word in args.judge):
        raise ContestError(
            "name what the models are asked with --prompts; without it people's rankings alone can judge"
        )
    named = [(name, named_judge(word)) for name, word in map(alias, args.judge)]
    models = args.models or list(dict.fromkeys(model for _, judge in named for model in judge.models))
    require_different("model", models)
    if len(models) < 2:
        known = ", ".join(models) or "no model by name"
        raise ContestError(f"name two models at least whose replies were ranked, not {known}")
    for _, judge in named:
        if unknown := [name for name in models if name not in judge.models]:
            known = ", ".join(judge.models)
            raise ContestError(f"{judge.described} ranked no model called {unknown[0]} (known are {known})")
    rows = ranked_rows([judge for _, judge in named], models)
    judged = [Judged(name or one.name, one.described, own) for (name, one), own in zip(named, rows, strict=True)]
    require_different("judge", [one.name for one in judged])
    for one in judged:
        _require_verdict(one)
    out = typed_path(args.out or "-".join(["eval", *(one.name for one in judged)]))
    _require_ours(out)
    with locked(out, ["eval"]):
        for one in judged:
            files.write_json_lines(out / "judgments" / f"{one.name}.jsonl", one.rows)
        about = {"prompts": None, "sampling": None, "contestants": dict.fromkeys(models, "")}
        _show(args, out, about, judged)


def _sampling(args: argparse.Namespace) -> Any:
    from rollouts.protocol import SamplingParams

    temperature = float(args.num_samples > 1) if args.temperature is None else args.temperature
    if args.num_samples > 1 and not temperature:
        raise ContestError("greedy replies to a prompt are all the same: set --temperature above 0, or --num-samples 1")
    return SamplingParams(n=args.num_samples, temperature=temperature, max_new_tokens=args.max_tokens, seed=args.seed)


def _prompts(args: argparse.Namespace) -> list[Any]:
    """The prompts, each once, with the columns of all."""
    from align.commands.chat import read_prompts
    from data_formats.columns import with_all_columns

    read = read_prompts(args.prompts, args.system)
    found = list({(one.messages, one.tools): one for one in reversed(read)}.values())[::-1]
    if len(found) < len(read):
        say(f"{args.prompts}: {len(read) - len(found)} prompts that stand there before are asked once", file=sys.stderr)
    return with_all_columns(found[: args.limit])


def _judged(
    args: argparse.Namespace, wanted: Wanted, prompts: Sequence[Any], replies: dict[str, Any], made: Any
) -> Any:
    """All that a judge says, judged where it is not there yet.

    Raises:
        ContestError: it has no verdict at all.
    """
    from align.evaluation.contest import Judged, judged_rows
    from align.runs.progress import StageProgress
    from align.runtime.memory import memory_errors

    kept = made.folder / "judgments" / f"{wanted.name}.jsonl"
    made.require(kept, wanted.settings | {"prompts": digest(prompts)})
    with (
        memory_errors(f"the judge {wanted.name}", f"--batch-size ({args.batch_size})"),
        StageProgress(f"judged by {wanted.name}", len(prompts)) as progress,
    ):
        judge = wanted.judge(args, kept.with_suffix(".answers"))
        rows = judged_rows(judge, prompts, replies, kept, progress.update)
    usage = getattr(judge, "usage", None)
    judged = Judged(wanted.name, judge.described, rows, asdict(usage) if is_dataclass(usage) else {})
    _require_verdict(judged)
    return judged


def _require_verdict(judged: Any) -> None:
    """Raises ContestError where somebody has none at all."""
    said = [one for row in judged.rows for one in row["judgments"]]
    if not any(one["winner"] for one in said):
        why = next((f" (the first time: {one['note']})" for one in said if one.get("note")), "")
        pairs = f"any of the {len(judged.rows)} pairs of replies" if judged.rows else "two replies to the same prompt"
        raise ContestError(f"{judged.judged_by} has no verdict on {pairs}{why}")


def _show(args: argparse.Namespace, out: Path, about: dict[str, Any], judged: Sequence[Any]) -> None:
    from align.evaluation.contest import result
    from align.evaluation.win_table import tables

    found = {**about, **result(judged, seed=args.seed)}
    files.write_json(out / f"{WINS}.json", found)
    files.write_text(out / f"{WINS}.md", "\n".join(table.markdown() for table in tables(found, whole=True)))
    if args.json:
        say(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for table in tables(found):
        say(table.text())
    for one in judged:
        if words := spent(one.usage):
            say(f"{one.name}: {words}")
    say(f"{out}: replies, judgments, {WINS}.json and {WINS}.md")
