"""What the first rows of a recipe's data say, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator

from align.recipe.schema import Recipe
from align.recipe.sources import WORLD, kind_of, source_path, stage_sources
from data_formats import records
from data_formats.reading import read

ROWS = 100


def passed_over(recipe: Recipe) -> Iterator[str]:
    """A line for each file whose first rows hold fields that no reader understands; each file once a kind.

    Datasets of the hub, dumps, and what a stage has yet to write are not looked at.

    Raises:
        DataError: one of these rows cannot be read; names file, line and field.
    """
    seen = set()
    for stage in recipe.stages:
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
