"""The training rows that a stage's `selection` keeps. Held-out rows have been set apart before, and stay as they are.

The first rank chooses, once: `<stage>/selection/` holds the choice, why each row was kept or dropped, and a page of it;
the stage goes on with the same rows, and chooses anew where the rows, the section or the models it names are others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.recipe import Recipe
from align.recipe.lineage import selection_origins
from align.runtime.errors import AlignError
from align.runtime.ranks import agree, is_main
from align.stages import common
from data_formats.errors import EmptyDatasetError


class SelectionError(AlignError, RuntimeError):
    """The first rank could not choose."""


def chosen(
    recipe: Recipe, stage: str, section: Any, records: Sequence[Any], out_dir: Path
) -> tuple[list[Any], dict[str, Any]]:
    """The records that are learnt from, in their order, and `selection` for the stage's summary.

    Args:
        section: of the stage; without `selection` all records stay.
        records: those that are not held out.
        out_dir: of the stage.

    Raises:
        EmptyDatasetError: none is there to choose among, or none is kept.
        SelectionError: it failed on the first rank, which says why; there its own error is raised.
    """
    if section.selection is None:
        return list(records), {}
    from align.curation.outcome import choose_records, read_choice
    from align.report.selection import build_page

    if not records:
        raise EmptyDatasetError(f"stage '{stage}' has no training rows to choose among: check {stage}.data")
    folder = out_dir / common.SELECTION
    origins = {origin.value: origin for origin in selection_origins(recipe, section).values()}

    def find_model(name: str) -> str:
        return common.origin_path(recipe, origins[name], stage=stage) if name in origins else name

    def choose() -> None:
        choose_records(records, section.selection, folder, find_model)
        build_page(folder, f"{recipe.name}: {stage}")

    agree(choose, lambda words: SelectionError(f"the first rank could not choose rows ({words})"), mine=is_main())
    kept, figures = read_choice(folder)
    dropped = ", ".join(f"{count} {reason}" for reason, count in figures["dropped"].items())
    if not kept:
        told = f"{stage}.selection keeps none of {len(records)} rows ({dropped})"
        raise EmptyDatasetError(f"{told}: raise {stage}.selection.keep")
    common.LOG.info("%s: selection keeps %d of %d rows (%s)", stage, len(kept), len(records), dropped or "none dropped")
    return [records[at] for at in kept], {"selection": figures}
