"""The table of all formats in `docs/formats.md`: python -m data_formats.table > docs/formats.md"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from data_formats.detection import FORMATS

HEAD = """# Formats of data files

A file's format is found by its first row (`format: auto`): the one whose fields it has and that needs most of them; a
tie is refused, and `format: NAME` decides. Every row is then read by that format. Keys that no format understands are
counted and shown by `align data stats` and `inspect`; one whose meaning would be lost is refused by name.

Containers: JSON Lines (`.jsonl`, `.ndjson`), JSON (a list, or an object of columns), `.csv`, `.tsv`, `.parquet`, each
also as `.gz` or `.zst`; StackExchange dumps (`.xml`), text (`.txt`, `.md`), and datasets of the hub. Exports of Argilla
(records, or flattened) and Label Studio (JSON, JSON-MIN) are read as the plain rows that were annotated.

Further fields of a prompt, lists and objects too, are columns for reward functions; one that a row lacks is None.

What people ranked is read in [shapes of its own](judging.md#peoples-rankings): nothing is trained on it, it judges.

| name | read as | needs | holds |
|---|---|---|---|
"""


def _description(parse: Callable[..., Any]) -> str:
    """The first sentence of the docstring of what reads a row."""
    while isinstance(parse, partial):
        parse = parse.keywords.get("read") or (parse.args[0] if parse.args else parse.func)
    lines = (parse.__doc__ or "").strip().splitlines()
    return lines[0].replace("|", "\\|") if lines else ""


def markdown() -> str:
    """The page."""
    rows: dict[str, list[str]] = {}
    for known in FORMATS:
        needs = ", ".join(f"`{name}`" for name in sorted(known.needs))
        kinds, *_ = rows.setdefault(known.name, ["", needs, _description(known.parse)])
        rows[known.name][0] = ", ".join(filter(None, (kinds, known.kind.__name__)))
    return HEAD + "".join(f"| {name} | {' | '.join(cells)} |\n" for name, cells in rows.items())


if __name__ == "__main__":
    print(markdown(), end="")
