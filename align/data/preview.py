"""What a recipe's data say before anything runs: by their first rows, and by how many they are."""

from __future__ import annotations

import math
from collections.abc import Iterator

from align.recipe.epochs import epochs_of, epochs_of_whole_passes, in_epochs, too_many_epochs
from align.recipe.fields import Source
from align.recipe.registry import STAGES
from align.recipe.schema import Recipe
from align.recipe.sources import COLLECT, WORLD, kind_of, source_path, stage_sources
from data_formats import records
from data_formats.reading import read

ROWS = 100
CHOSEN_BY = ("cleaning", "packing", "tag_balanced", "min_grade")  # keys that make of rows fewer, or others


def passed_over(recipe: Recipe) -> Iterator[str]:
    """A line for each file whose first rows hold fields that no reader understands; each file once a kind.

    Datasets of the hub, dumps, and what a stage has yet to write are not looked at.

    Raises:
        DataError: one of these rows cannot be read; names file, line and field.
    """
    seen = set()
    collects = (COLLECT,) if recipe.collect is not None else ()
    for stage in (*recipe.stages, *collects):
        for key, source in stage_sources(recipe, stage):
            kind, path = kind_of(key), source_path(recipe, source)
            unread = source.hub is not None or source.path.startswith(WORLD) or ".xml" in path.suffixes
            if unread or (kind, path) in seen:
                continue
            seen.add((kind, path))
            options = {"format": source.format, "split": source.split, "max_row_mb": source.max_row_mb}
            report = read(path, getattr(records, kind), limit=min(source.limit or ROWS, ROWS), **options).report
            if report.passed_over:
                yield f"{key}: {path}: fields passed over in its first rows: {report.describe_passed_over()}"


def epochs_said(recipe: Recipe) -> Iterator[str]:
    """A line for each stage whose rows can be counted: how many epochs its steps are; and a warning for each that has
    more of them than are known to help."""
    for stage in recipe.stages:
        section, rows = getattr(recipe, stage), expected_rows(recipe, stage)
        iterations, epochs = getattr(section, "num_iterations", None), getattr(section, "num_train_epochs", None)
        if rows and iterations is not None:
            passes = epochs_of(iterations, section.rollout_batch_size, rows)
            yield f"{stage}: {in_epochs(iterations, passes, rows, step='iterations', row='prompts')}"
        elif rows and epochs is not None:
            steps = section.max_steps or math.ceil(math.ceil(rows / section.batch_size) * epochs)
            epochs = epochs_of_whole_passes(steps, section.batch_size, rows)
            yield f"{stage}: about {in_epochs(steps, epochs, rows, row=section.unit)}"
        known = epochs is not None and (rows or section.max_steps is None)
        if known and (told := too_many_epochs(section, epochs)):
            yield f"warning: {stage}: {told}"


def expected_rows(recipe: Recipe, stage: str) -> int | None:
    """About how many rows a stage trains on, before any is read and dropped; None where only reading could tell."""
    section = getattr(recipe, stage)
    chosen = any(getattr(section, key, None) for key in CHOSEN_BY) or getattr(section, "rankings", "pairs") != "pairs"
    if chosen or kind_of(f"{stage}.data.0") == "Document" or hasattr(section, "num_rounds"):
        return None
    if recipe.rounds is not None and STAGES[stage].records == "Comparison" and STAGES[stage].in_rounds:
        return None  # those that will be judged come to them
    counts = [_count(recipe, source) for source in section.data]
    if None in counts or any(source.weight is not None for source in section.data):
        return None
    held_out = 0.0 if section.eval_data else getattr(section, "holdout", 0.0)
    return round(sum(counts) * (1 - held_out))


def _count(recipe: Recipe, source: Source) -> int | None:
    path = None if source.hub is not None else source_path(recipe, source)
    if source.path.startswith(WORLD):
        rows = getattr(recipe.tinyworld, source.path.removeprefix(WORLD), None)
    elif path is None or path.suffix not in (".jsonl", ".ndjson") or not path.is_file():
        return None
    else:
        with path.open("rb") as file:  # a gigabyte a second
            rows = sum(not line.isspace() for line in file)
    if rows is None:
        return None
    return round((rows if source.limit is None else min(rows, source.limit)) * (source.epochs or 1))
