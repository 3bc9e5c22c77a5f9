"""`align data stats`: rows in, records out, what was dropped and repaired by reason, and how long the texts are."""

from __future__ import annotations

import json
import sys
from bisect import bisect
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from align.commands.kinds import KINDS, files_in, kind_of
from align.data.variety import Variety
from align.runtime.errors import AlignError, MissingFileError
from align.runtime.table import table
from align.runtime.terminal import say
from data_formats import ReadReport, stream
from data_formats.cleaning.texts import prompt_text, reply_texts
from data_formats.records import Record

QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)
SHOWN_CATEGORIES = 12
MOST_NAMES = 10_000  # categories, and sources, that are counted one by one; a source may be each row's own address


@dataclass(slots=True)
class Lengths:
    """How many texts there are of each length in characters: as much memory as there are lengths."""

    counts: Counter[int] = field(default_factory=Counter)

    def quantiles(self) -> dict[str, int]:
        """Least, median, 90 %, 99 % and most (nearest rank); empty without values."""
        lengths = sorted(self.counts)
        up_to = list(accumulate(self.counts[length] for length in lengths))
        return {f"{q:g}": lengths[bisect(up_to, round(q * (up_to[-1] - 1)))] for q in QUANTILES} if lengths else {}


@dataclass
class FileStats:
    """What one file holds."""

    report: ReadReport
    kind: str
    prompt_characters: dict[str, int]
    reply_characters: dict[str, int]
    categories: dict[str, int]
    sources: dict[str, int]
    tags: Variety = field(default_factory=Variety)

    def as_json(self) -> dict[str, Any]:
        """One object of `--json`."""
        found = self.report.to_dict() | {name: value for name, value in vars(self).items() if name != "report"}
        return found | {"tags": self.tags.figures(SHOWN_CATEGORIES) if self.tags.tagged else {}}


def measure(path: Path | str, kind: type[Record], options: dict[str, Any]) -> FileStats:
    """Read a file to its end, holding no record."""
    rows = stream(path, kind, **options)
    prompts, replies = Lengths(), Lengths()
    categories, sources, tags = Counter[str](), Counter[str](), Variety()
    for record in rows:
        prompts.counts[len(prompt_text(record))] += 1
        replies.counts.update(len(text) for text in reply_texts(record))
        for counts, key in ((categories, getattr(record, "category", "")), (sources, record.source)):
            counts[key if key in counts or len(counts) < MOST_NAMES else "(further ones)"] += 1
        tags.add(getattr(record, "tags", ()))
    name = next(name for name, one in KINDS.items() if one is kind)
    named = [{key: count for key, count in counts.most_common() if key} for counts in (categories, sources)]
    return FileStats(rows.report, name, prompts.quantiles(), replies.quantiles(), *named, tags)


def stats(paths: list[Path | str], kind: str | None, options: dict[str, Any], as_json: bool) -> int:
    """Print the statistics of every file; 1 when a file was refused. Raises MissingFileError where there is none."""
    found: list[FileStats] = []
    refused: list[dict[str, str]] = []
    files, notes = files_in(paths)
    if not files:
        raise MissingFileError("; ".join(notes))
    for note in notes:
        say(note, file=sys.stderr)
    for path in files:
        try:
            found.append(measure(path, KINDS[kind] if kind else kind_of(path, options), options))
        except AlignError as error:
            refused.append({"path": str(path), "refused": str(error)})
    if as_json:
        say(json.dumps([*(one.as_json() for one in found), *refused], ensure_ascii=False, indent=2))
    else:
        if found:
            say(describe(found))
        for one in refused:
            say(f"refused: {one['refused']}")
    return 1 if refused else 0


def describe(found: list[FileStats]) -> str:
    """One line a file, then what was dropped and repaired, and the categories."""
    header = ("file", "kind", "format", "rows", "records", "dropped", "repaired", "prompt", "reply")
    rows = [
        (
            one.report.path,
            one.kind,
            one.report.format,
            one.report.rows,
            one.report.records,
            sum(one.report.dropped.values()),
            sum(one.report.repaired.values()),
            one.prompt_characters.get("0.5", ""),
            one.reply_characters.get("0.5", ""),
        )
        for one in found
    ]
    lines = [table(header, rows), "prompt, reply: median characters"]
    for one in found:
        for word in ("dropped", "repaired"):
            lines += [f"{one.report.path}: {word} {n}: {why}" for why, n in sorted(getattr(one.report, word).items())]
        if one.report.passed_over:
            lines.append(f"{one.report.path}: fields passed over: {one.report.describe_passed_over()}")
        if one.categories:
            shown = list(one.categories.items())[:SHOWN_CATEGORIES]
            more = f", and {len(one.categories) - len(shown)} more" if len(one.categories) > len(shown) else ""
            lines.append(f"{one.report.path}: " + ", ".join(f"{name} {count}" for name, count in shown) + more)
        if one.tags.tagged:
            lines.append(f"{one.report.path}: tags: {one.tags.describe(most=SHOWN_CATEGORIES)}")
    return "\n".join(lines)
