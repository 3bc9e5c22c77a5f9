"""A recipe's sources -> records, with a report on each file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from align.data.cleaning import clean_records
from align.data.collector import collector_paused
from align.data.hub import hub_dataset
from align.data.mixture import in_parts, parted_by
from align.recipe.cleaning_section import CleaningSection
from align.recipe.fields import Source
from align.recipe.schema import Recipe
from align.recipe.sources import WORLD, source_path
from align.recipe.supervised_sections import SupervisedSection
from align.runtime.errors import MissingFileError
from data_formats.cleaning import CleaningReport
from data_formats.columns import with_all_columns
from data_formats.errors import EmptyDatasetError
from data_formats.hub import HubDataset
from data_formats.mixing import mixture
from data_formats.reading import ReadReport, preference_kind, read
from data_formats.records import Prompt, Record
from data_formats.splitting import split_heldout

Report = ReadReport | CleaningReport


def load_records(
    sources: Sequence[Source],
    kind: type[Record],
    recipe: Recipe,
    cleaning: CleaningSection | None = None,
    *,
    ranked: bool = False,
    by: str | None = None,
    alone: bool = False,
) -> tuple[list[Any], list[Report]]:
    """All records of the sources, one source after the other, and the reports in the same order.

    Sources with weights are mixed, see `data_formats.mixing`; the reports then say how many records each gave. Where
    `cleaning` is given, what is left is cleaned, and the last report is the cleaning's. With `ranked`, a source of
    comparisons whose format holds scored replies is read as `Scored`.

    A record without a source of its own gets the source's path as the recipe writes it. With `by` it gets its part of
    the mixture too (`align.data.mixture`). `alone`: see `clean_records`.

    Raises:
        MissingFileError: a file is not there.
        DataError: a file cannot be read as records of this kind.
        EmptyDatasetError: nothing is left of all of them; says what was dropped.
    """
    records: list[Any] = []
    per_source: list[list[Any]] = []
    reports: list[Report] = []
    for source in sources:
        path = _place(source, recipe)
        read_as = preference_kind(path, source.format, source.max_row_mb) if ranked else kind
        with collector_paused():
            result = read(
                path,
                read_as,
                format=source.format,
                limit=source.limit,
                category=source.category,
                split=source.split,
                max_row_mb=source.max_row_mb,
            )
        own = [one if one.source else replace(one, source=source.name) for one in result.records]
        own = own if by is None else in_parts(own, source, by)
        result.report.source = source.name
        records += own
        per_source.append(own)
        reports.append(result.report)
    if any(source.weight is not None for source in sources):
        mixed = mixture(per_source, [source.weight for source in sources], recipe.seed)
        records = mixed.records
        for report, count in zip(reports, mixed.drawn, strict=True):
            report.drawn = count
    if cleaning is not None:
        records, cleaned = clean_records(
            records, cleaning, lambda against: load_records(against, Prompt, recipe)[0], alone=alone
        )
        reports.append(cleaned)
    if not records:
        found = "; ".join(report.describe() for report in reports) or "no source was named"
        raise EmptyDatasetError(f"no {kind.__name__.lower()} is left ({found})")
    return with_all_columns(records) if kind is Prompt else records, reports


def _place(source: Source, recipe: Recipe) -> Path | HubDataset:
    """Where a source's rows are read. Raises MissingFileError: an embedded world that is not there."""
    if source.hub is not None:
        return hub_dataset(source)
    path = source_path(recipe, source)
    if source.path.startswith(WORLD) and not path.exists():
        raise MissingFileError(f"{path}: the embedded world has not been written here; run `align run` on this recipe")
    return path


def train_and_heldout(
    section: SupervisedSection,
    kind: type[Record],
    recipe: Recipe,
    *,
    ranked: bool = False,
    alone: bool = False,
) -> tuple[list[Any], list[Any], list[Report]]:
    """Training and held-out records of a supervised stage.

    Held out are the records of `eval_data`, or, without it, the share `holdout` of the prompts of `data`, by a hash.
    The section's cleaning concerns `data`; `eval_data` are taken as they are. `alone`: see `clean_records`.

    Raises:
        MissingFileError, DataError, EmptyDatasetError: see `load_records`.
    """
    by = parted_by(section)
    records, reports = load_records(section.data, kind, recipe, section.cleaning, ranked=ranked, by=by, alone=alone)
    if section.eval_data:
        heldout, more = load_records(section.eval_data, kind, recipe, ranked=ranked)
        return records, heldout, reports + more
    train, heldout = split_heldout(records, section.holdout)
    return train, heldout, reports
