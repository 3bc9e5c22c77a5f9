"""Cleaning as a plain function over batches of lines, for an engine that has many processes or machines.

    clean = BatchCleaner(steps, Demonstration, "messages")
    rows = load_dataset("text", data_files="talk.jsonl", split="train")      # `datasets`; a row is a line
    rows = rows.map(clean, batched=True, remove_columns="text", num_proc=16)
    read, cleaned = write_batches("clean.jsonl", rows)

The object can be pickled and remembers nothing between two batches, so Ray Data's `map_batches`, or Spark's
`mapInPandas` around each frame, can call it as well. Rows, their order (where the engine keeps it) and the reports are
those of `Cleaner` over the whole file. Steps that compare records with one another, the removal of duplicates, run
afterwards, in one process, over what is left: `steps_alone` tells them apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_formats.cleaning.cleaner import Cleaner
from data_formats.cleaning.report import CleaningReport
from data_formats.cleaning.steps import CleaningStep
from data_formats.detection import named
from data_formats.errors import EmptyDatasetError
from data_formats.files import Lines
from data_formats.reading import Stream
from data_formats.records import Record
from data_formats.report import ReadReport
from data_formats.writing import jsonl_line, write_lines


def steps_alone(steps: Iterable[CleaningStep]) -> tuple[list[CleaningStep], list[CleaningStep]]:
    """The steps that look at each record alone, and those that compare it with others."""
    alone, others = [], []
    for step in steps:
        (others if getattr(step, "compares", False) else alone).append(step)
    return alone, others


class BatchCleaner:
    """Lines of JSON Lines -> the lines of what is left, and what became of the others.

    Args:
        steps: that look at each record alone.
        kind: what the lines hold.
        format: the format's name; there is no "auto", since a batch does not know the file's first row.
        column: of the batch, with its lines.
        name: of the data, for the report.

    Raises:
        ValueError: a step compares records with one another, or rows of the format are read together.
        DataError: no such format.
    """

    def __init__(
        self, steps: Sequence[CleaningStep], kind: type[Record], format: str, column: str = "text", name: str = "lines"
    ):
        if others := steps_alone(steps)[1]:
            raise ValueError(f"{others[0].name} compares records with one another; run it afterwards, in one process")
        if named(format, kind).group:
            raise ValueError(f"rows of format '{format}' are read together, not in batches; convert them first")
        self._steps, self._kind, self._format, self._column, self._name = tuple(steps), kind, format, column, name

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str | None]]:
        """Columns `line` and `report`; the report is a last row of its own.

        Raises:
            DataError: a line is malformed; says which of the batch.
        """
        rows = Stream(Lines(batch[self._column]), self._kind, format=self._format)
        cleaner = Cleaner(self._steps)
        lines: list[str | None] = []
        with suppress(EmptyDatasetError):  # lines of white space
            lines += map(jsonl_line, cleaner.clean(rows))
        rows.report.path = self._name
        report = {"read": rows.report.to_dict(), "cleaning": cleaner.report.to_dict()}
        return {"line": [*lines, None], "report": [None] * len(lines) + [json.dumps(report, ensure_ascii=False)]}


def write_batches(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> tuple[ReadReport, CleaningReport]:
    """Write the lines that `BatchCleaner` left, and add up its reports.

    Raises:
        EmptyDatasetError: there is no row, not even a report's; nothing is written then.
        StorageError: writing failed.
    """
    reports: list[tuple[ReadReport, CleaningReport]] = []

    def lines() -> Iterator[str]:
        for row in rows:
            if row["report"] is None:
                yield row["line"]
                continue
            told = json.loads(row["report"])
            more = ReadReport(**told["read"]), CleaningReport.from_dict(told["cleaning"])
            if not reports:
                reports.append(more)
            else:
                for own, other in zip(reports[0], more, strict=True):
                    own.add(other)
        if not reports:
            raise EmptyDatasetError("no batch was cleaned, so nothing is written")

    write_lines(path, lines())
    return reports[0]
