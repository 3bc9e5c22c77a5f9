"""Precision and recall of each safety filter on texts that were labelled by hand.

    python examples/experiments/filters.py [--rows FILE] [--presidio] [--misses] [--model FOLDER [--max-nats X]]

The rows lie in tests/data_formats/cleaning/labelled_rows.jsonl; where they are from and what a label means is said in
labelled_rows.md beside them. Counted apart are the first draw of real rows, on whose misses the rules were mended; the
second, drawn and labelled afterwards, which says what to expect; and the planted rows, which show that a rule works.
Intervals are Wilson's of 95 %, over rows. `--misses` lists what was found wrongly (+) or not (-), `--presidio` counts
personal data by presidio and patterns too, where it is installed, `--model` counts English documents and misread texts
that lie above X nats a token under a causal language model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from align.evaluation.shares import wilson
from align.runtime.table import table
from data_formats.cleaning import C4, CleaningStep, Gopher, Languages, MachineMade, Perplexity, Toxicity, WordList
from data_formats.cleaning.machine_made import KINDS as MACHINE_KINDS
from data_formats.cleaning.pii_patterns import KINDS, mask_by_pattern
from data_formats.cleaning.presidio import PresidioMask
from data_formats.records import Document

HERE = Path(__file__).resolve().parents[2] / "tests/data_formats/cleaning"
ROWS, WORDS = HERE / "labelled_rows.jsonl", HERE / "toxic_words.txt"
KEPT = ("en", "zh")
DRAWS = {1: "first draw of real rows", 2: "second draw of real rows", 0: "planted rows"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What a filter is asked about a row: whether it applies, what a person said, what the filter says."""

    name: str
    wanted: Callable[[Row], bool]
    says: Callable[[Row], bool]
    applies: Callable[[Row], bool] = lambda row: True


@dataclass
class Counts:
    """What came of a question: rows found rightly, wrongly, and missed."""

    right: int = 0
    wrong: list[int] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)

    @property
    def precision(self) -> tuple[int, int]:
        return self.right, self.right + len(self.wrong)

    @property
    def recall(self) -> tuple[int, int]:
        return self.right, self.right + len(self.missed)


def read_rows(path: Path = ROWS) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def drops(step: CleaningStep, row: Row) -> bool:
    found = step.check(Document(row["text"]))
    return found is not None and found.action == "drop"


def kinds_found(mask: Callable[[str], Any], kind: str | None, row: Row) -> bool:
    counts = mask(row["text"])[1]
    return bool(counts) if kind is None else kind in counts


def perplexity(model: str, max_nats: float) -> Question:
    """Whether a model tells bad English documents and misread texts from good ones; short replies are left out."""
    from align.textmodels.perplexity import ModelPerplexity

    step = Perplexity(ModelPerplexity(model), max_nats=max_nats)
    return Question(
        f"perplexity, max_nats {max_nats:g}",
        lambda row: bool(row["bad"]) or "ocr" in row["machine_made"],
        partial(drops, step),
        lambda row: row["language"] == "en" and (row["kind"] == "document" or "ocr" in row["machine_made"]),
    )


def questions(presidio: bool = False) -> Iterator[Question]:
    """Every filter, each with the label that it is to find."""
    masks: dict[str, Callable[[str], Any]] = {"patterns": mask_by_pattern}
    if presidio:
        masks["presidio and patterns"] = PresidioMask(KINDS)
    for by, mask in masks.items():
        yield Question(f"pii, any kind, by {by}", lambda row: bool(row["pii"]), partial(kinds_found, mask, None))
        for kind in KINDS:
            yield Question(
                f"pii: {kind}, by {by}", lambda row, kind=kind: kind in row["pii"], partial(kinds_found, mask, kind)
            )
    other = lambda row: row["language"] not in (*KEPT, "und")  # noqa: E731
    yield Question(f"languages, keep {', '.join(KEPT)}", other, partial(drops, Languages(KEPT)))
    yield Question("toxicity, word list", lambda row: row["toxic"], partial(drops, Toxicity([WordList(WORDS)])))
    for kind in MACHINE_KINDS:
        step = MachineMade([kind])
        yield Question(
            f"machine_made: {kind}", lambda row, kind=kind: kind in row["machine_made"], partial(drops, step)
        )
    document = lambda row: row["kind"] == "document"  # noqa: E731
    for name, step in (("gopher", Gopher()), ("gopher, min_words 20", Gopher(min_words=20)), ("c4", C4())):
        yield Question(name, lambda row: bool(row["bad"]), partial(drops, step), document)


def measured(rows: Sequence[Row], asked: Question) -> Counts:
    """A question's counts over the rows that it applies to."""
    counts = Counts()
    for row in filter(asked.applies, rows):
        wanted, says = asked.wanted(row), asked.says(row)
        counts.right += wanted and says
        if says and not wanted:
            counts.wrong.append(row["id"])
        if wanted and not says:
            counts.missed.append(row["id"])
    return counts


def shown(successes: int, trials: int) -> str:
    if not trials:
        return "-"
    low, high = wilson(successes, trials)
    return f"{successes}/{trials} = {successes / trials:.2f} ({low:.2f} to {high:.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS, metavar="FILE")
    parser.add_argument("--presidio", action="store_true")
    parser.add_argument("--misses", action="store_true")
    parser.add_argument("--model", metavar="FOLDER")
    parser.add_argument("--max-nats", type=float, default=4.5, metavar="X")
    args = parser.parse_args()
    rows, asking = read_rows(args.rows), list(questions(args.presidio))
    asking += [perplexity(args.model, args.max_nats)] if args.model else []
    texts = {row["id"]: " ".join(row["text"].split())[:90] for row in rows}
    for draw, title in DRAWS.items():
        own = [row for row in rows if row["draw"] == draw]
        lines = []
        for asked in asking:
            counts = measured(own, asked)
            lines.append((asked.name, shown(*counts.precision), shown(*counts.recall)))
            if args.misses:
                lines += [(f"  + {at} {texts[at]}", "", "") for at in counts.wrong]
                lines += [(f"  - {at} {texts[at]}", "", "") for at in counts.missed]
        print(f"{title}: {len(own)}\n{table(('filter', 'precision', 'recall'), lines)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
