"""`align data select`: files -> the rows worth learning from, why each was kept or dropped, and a page of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.commands.options import source
from align.runtime.lock import locked
from align.runtime.paths import typed_path
from align.runtime.terminal import say
from data_formats import DataError, EmptyDatasetError, write_jsonl

if TYPE_CHECKING:
    from align.recipe.selection_section import SelectionSection


def add_parser(what: Any) -> argparse.ArgumentParser:
    """Add `select` to the subparsers of `align data`."""
    select = what.add_parser("select", help="the rows that are worth learning from")
    select.add_argument("paths", metavar="FILE|FOLDER|hub:ID", type=source, nargs="+")
    select.add_argument("out", metavar="OUT.jsonl", type=Path)
    select.add_argument("--selection", metavar="YAML", type=Path, help="a file with a recipe's selection section")
    select.add_argument("--keep", type=float, metavar="N", help="rows kept: a share up to 1, or a number (default 0.5)")
    select.add_argument("--embeddings", metavar="MODEL", help="folder or hub id (default: hashed TF-IDF)")
    select.add_argument("--random", action="store_true", help="as many rows drawn at random, as a control")
    select.add_argument("--seed", type=int, metavar="N", help="of clusters and draws (default 0)")
    return select


def selection_of(args: argparse.Namespace) -> SelectionSection:
    """The section that `--selection` names, with what the command line says in place of its keys.

    Raises:
        MissingFileError, RecipeError: no such file, or with errors.
    """
    from align.recipe.section_file import checked_section
    from align.recipe.selection_section import SelectionSection, read_selection

    section = SelectionSection() if args.selection is None else read_selection(args.selection)
    names = ("keep", "embeddings", "seed")
    told = {name: value for name in names if (value := getattr(args, name)) is not None}
    found = dict(section) | told | ({"random": True} if args.random else {})
    return checked_section(SelectionSection, found, str(args.selection or "align data select"))


def select(
    paths: list[Path | str],
    out: Path,
    kind: str | None,
    options: dict[str, Any],
    cleaner: Any,
    section: SelectionSection,
) -> None:
    """Write the chosen rows to `out`, and beside it, in a folder of its name, what became of every row.

    Raises:
        RecipeError: a package, folder or scorer that the section needs is missing.
        MissingFileError, DataError: no file, one that cannot be read, or several kinds of records in them.
        EmptyDatasetError: no row is left.
    """
    from align.commands.convert import RowsOfFiles
    from align.curation.outcome import ROWS, choose_records
    from align.recipe.errors import RecipeError
    from align.recipe.selection_section import selection_problems
    from align.report.selection import build_page

    out = typed_path(out)
    rows = RowsOfFiles(paths, kind, options, cleaner)
    if any(isinstance(path, Path) and out.exists() and out.samefile(path) for path in rows.paths):
        raise DataError("the output is an input; name another file", path=out)
    if problems := selection_problems("selection", section, rows.kind.__name__):
        raise RecipeError(problems, "align data select")
    records = list(rows)
    rows.say()
    folder = out.with_name(f"{out.stem}.selection")
    with locked(folder, ["select"]):
        kept, figures = choose_records(records, section, folder)
        if not kept:
            raise EmptyDatasetError(f"none of {len(records)} rows is kept, so nothing is written: raise keep")
        write_jsonl(out, (records[at] for at in kept))
        page = build_page(folder, out.name)
    say(f"{out}: {len(kept)} of {figures['rows']} rows kept, in {figures['clusters']} clusters")
    for reason, count in figures["dropped"].items():
        say(f"  {count} {reason}")
    say(f"{folder / ROWS}: why, row by row; {page}: the page")
