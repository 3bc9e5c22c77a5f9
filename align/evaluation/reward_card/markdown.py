"""The card's block for a model card: a table between two markers, put into `README.md` and replaced there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.evaluation.table import percent
from align.runtime.card import CARD
from align.runtime.errors import StorageError
from align.runtime.files import write_text
from align.runtime.json_files import read_text
from align.runtime.terminal import printable

BEGIN, END = "<!-- align reward-card -->", "<!-- end of align reward-card -->"
SHOWN_PARTS = 4
_BLOCK = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}\n?", re.DOTALL)


def block(card: Mapping[str, Any]) -> str:
    """The card as Markdown, its markers included."""
    lines = [
        BEGIN,
        "## Public reward benchmarks",
        "",
        "| benchmark | score | 95 % interval | longer reply | shorter reply | rows |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    notes = []
    for one in card["benchmarks"].values():
        overall = one["overall"]
        if overall is not None:
            figures = (overall["score"], interval(overall), overall["longer"], overall["shorter"], of_rows(one))
            cells = [figure if isinstance(figure, str) else percent(figure) for figure in figures]
            lines.append(f"| {' | '.join((_cell(one['name']), *cells))} |")
        if words := not_whole(one):
            notes.append(words)
    told = ["By the benchmarks' own formulas, from their files, measured with `align reward-card`."]
    told.append("Longer and shorter reply: what always taking the longest, or the shortest, gets by the same formula.")
    if card["limit"] is not None:
        told.append(f"Of each part only the first {card['limit']} rows: no figure to compare with others'.")
    if notes:
        told.append(f"Not whole, so not comparable: {_cell('; '.join(notes))}.")
    lines += ["", " ".join(told)]
    return "\n".join((*lines, END)) + "\n"


def interval(figure: Mapping[str, Any]) -> str:
    """ "55.0 to 67.0 %"; "" where none is known."""
    if figure["low"] is None or figure["high"] is None:
        return ""
    return f"{100 * figure['low']:.1f} to {percent(figure['high'])}"


def of_rows(one: Mapping[str, Any]) -> str:
    """How many rows a benchmark's figure is over: "12 of 1865"; "1865" where that is all of them."""
    whole = one["published_rows"]
    return str(one["rows"]) if whole in (None, one["rows"]) else f"{one['rows']} of {whole}"


def not_whole(one: Mapping[str, Any]) -> str:
    """What a benchmark lacks of the whole one: "RewardBench 1 (6 of 2985 rows, without a, b and 17 more)"; "" for a
    whole one."""
    lacking, whole = one["lacking"], one["published_rows"]
    told = [] if whole in (None, one["rows"]) else [f"{of_rows(one)} rows"]
    if lacking:
        more = f" and {len(lacking) - SHOWN_PARTS} more" if len(lacking) > SHOWN_PARTS else ""
        told.append(f"without {', '.join(lacking[:SHOWN_PARTS])}{more}")
    return f"{one['name']} ({', '.join(told)})" if told else ""


def _cell(text: str) -> str:
    return printable(text).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")


def write_block(folder: Path, card: Mapping[str, Any]) -> Path:
    """Put the card's block into the model card in `folder`, in the place of an older one; returns the file.

    Raises:
        StorageError: one of the markers stands there without the other, or it cannot be written.
        RunFileError: it is not UTF-8 text.
    """
    file = folder / CARD
    text, made = read_text(file), block(card)
    there = _BLOCK.findall(text)
    if len(there) > 1 or text.count(BEGIN) != len(there) or text.count(END) != len(there):
        raise StorageError(f"{file} has the markers {BEGIN} and {END} not once each: mend it, or remove them")
    appended = f"{text.rstrip()}\n\n{made}".lstrip()
    write_text(file, _BLOCK.sub(lambda _: made, text) if there else appended)
    return file
