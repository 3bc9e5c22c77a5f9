"""align eval BEFORE AFTER --tax, or align eval RUN --tax: what pretraining had taught and aligning took away.

`tax.json` is written into the run that the later model is of, whose report shows it, or to --out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align.commands.contestants import ContestError, alias, file_name
from align.runtime import files
from align.runtime.paths import typed_path
from align.runtime.table import table
from align.runtime.terminal import say

TAX = "tax.json"
HARNESS_BATCH = 16  # requests of a task that a model answers at once


def tax(args: argparse.Namespace) -> None:
    """Measure both models, write the file, print the table.

    Raises:
        ContestError: not two models, or no documents.
        HarnessError, MissingPackageError: a task that cannot be run.
        others: as of `align.commands.eval.eval_command`.
    """
    from align.evaluation.harness import require_harness, task_differences
    from align.evaluation.tax import loss_difference
    from align.models.named import called

    tasks = args.lm_eval.split(",") if args.lm_eval else []
    if tasks:
        require_harness()
    before, after, run = _models(args.models)
    texts, sources = _documents(args, run)
    out = typed_path(args.out) if args.out else run or Path(f"eval-{file_name(called(after))}")
    files.prove_folder(out)
    (old, old_tasks), (new, new_tasks) = _measured(args, (before, after), texts, tasks)
    found = loss_difference(old, new, texts)
    found["before"] |= {"model": called(before), "path": before}
    found["after"] |= {"model": called(after), "path": after}
    found |= {"source": sources, "tasks": task_differences(old_tasks, new_tasks)}
    files.write_json(out / TAX, found)
    if args.json:
        say(json.dumps(found, ensure_ascii=False, indent=2))
        return
    _show(found)
    say(f"{out / TAX}: these figures")


def _models(words: Sequence[str]) -> tuple[str, str, Path | None]:
    """The earlier and the later model, and the run that the later one is of."""
    from align.models.named import beginning_of, policy_at, run_of

    paths = [policy_at(alias(word)[1]) for word in words]
    if len(paths) not in (1, 2):
        raise ContestError("--tax takes the model before and the model after, or one run")
    run = run_of(paths[-1])
    if len(paths) == 1 and run is None:
        raise ContestError(f"{words[0]} is no run: name the model before it too, as in BEFORE AFTER --tax")
    return (paths[0] if len(paths) == 2 else beginning_of(run)), paths[-1], run


def _documents(args: argparse.Namespace, run: Path | None) -> tuple[list[str], list[str]]:
    """The texts, and where they come from: the files that are named, else what the run's base stage held out."""
    from align.data.load import train_and_heldout
    from align.recipe import load_recipe
    from data_formats import Document, read

    if args.documents:
        found = [read(source, Document, max_row_mb=args.max_row_mb) for source in args.documents]
        for one in found:
            say(one.report.describe(), file=sys.stderr)
        texts, sources = [record.text for one in found for record in one.records], args.documents
    elif run is not None and (saved := run / "base" / "recipe.yaml").is_file():
        recipe = load_recipe(saved)
        texts = [record.text for record in train_and_heldout(recipe.base, Document, recipe)[1]]
        sources = [f"held out by {run / 'base'}"]
    else:
        raise ContestError("name plain text with --documents: no base stage of a run has held any out")
    if not texts:
        raise ContestError(f"no document is left in {', '.join(sources)}")
    return texts[: args.limit], sources


def _measured(
    args: argparse.Namespace, paths: Sequence[str], texts: Sequence[str], tasks: Sequence[str]
) -> Iterator[tuple[Any, Any]]:
    """Of each model the losses of the documents and what the tasks give, one model at a time."""
    from align.evaluation.harness import ask_tasks
    from align.evaluation.scoring import best_device
    from align.models.load import load_saved
    from align.models.named import called
    from align.models.tokenizer import load_saved_tokenizer
    from align.runs.progress import StageProgress
    from align.runtime.memory import memory_errors
    from align.runtime.peft_model import base_of
    from align.textmodels.perplexity import document_losses

    length = None
    for path in paths:
        with (
            memory_errors(called(path), f"--block-length ({args.block_length})"),
            StageProgress(f"loss of {called(path)}", len(texts)) as progress,
        ):
            tokenizer = load_saved_tokenizer(path)
            model = load_saved(path, tokenizer).to(best_device())
            config = base_of(model).config.get_text_config(decoder=True)
            room = (getattr(config, "max_position_embeddings", None) or args.block_length + 1) - 1
            length = length or min(args.block_length, room)
            if length > room:
                raise ContestError(f"{called(path)} has room for {room} tokens before one: set --block-length {room}")
            losses = document_losses(model, tokenizer, texts, length, progress.update)
        how = {"limit": args.limit, "batch_size": HARNESS_BATCH, "seed": args.seed}
        yield losses, ask_tasks(model, tokenizer, tasks, **how) if tasks else {}


def _show(found: dict[str, Any]) -> None:
    rows = []
    for key, words in (("loss", "nats a token"), ("bits_per_byte", "bits per byte")):
        change = found["difference"][key]
        rows.append((words, *_cells(found["before"][key], found["after"][key], change)))
    for task, metrics in found["tasks"].items():
        for metric, one in metrics.items():
            rows.append((f"{task}: {metric}", *_cells(one["before"], one["after"], one)))
    header = ("", found["before"]["model"], found["after"]["model"], "difference", "95 % interval")
    say(table(header, rows) + "\n")
    if found["difference"]["loss"] is None:
        say("the two cut text into different tokens: their bits per byte can be compared, their nats a token cannot")
    say(f"loss of {found['documents']} documents ({found['tokens']} tokens), {', '.join(found['source'])}")


def _cells(before: float, after: float, change: dict[str, float | None] | None) -> tuple[str, ...]:
    shown = (f"{before:.4f}", f"{after:.4f}")
    if change is None:  # other tokens
        return (*shown, "", "")
    interval = "" if change["low"] is None else f"{change['low']:+.4f} to {change['high']:+.4f}"
    return (*shown, f"{change['difference']:+.4f}", interval)
