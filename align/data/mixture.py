"""Which rows every optimizer step takes where a stage has a `mixture`, and rows of sources seen more than once.

A row knows its part (`part`: a source or a category, from its record). `MixedOrder` deals the rows of a step to the
parts by their shares at that step, and takes those of each part from one pass over it after another, every pass in an
order of its own. All of it depends on the section, the rows, the seed and the step alone: ranks agree without a word,
and a run that resumes goes on where it was without a state.

Shares change in `anneal` by phases: of S steps a phase with `start` s begins after round(s S), and a linear one comes
nearer its weights by the same amount in each of its steps, so that its last step has them (Llama 3, 2407.21783, 3.1.3
and 3.4.3, raised the share of good data while the learning rate fell to 0).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

from align.recipe.errors import RecipeError
from align.recipe.fields import Source
from align.recipe.mixture_section import MixtureSection
from data_formats.errors import DataError, EmptyDatasetError
from data_formats.mixing import Dealer, repeated, tempered
from data_formats.records import Document, Record
from data_formats.report import ReadReport

R = TypeVar("R", bound=Record)
NO_CATEGORY = "records have no category, by which mixture tells them apart; give their source one (category)"


def parted_by(section: Any) -> str | None:
    """What the parts of a stage's `data` are: sources, categories, or None where it has neither `mixture` nor
    `epochs`."""
    if section.mixture is not None:
        return section.mixture.by
    return "source" if any(source.epochs is not None for source in section.data) else None


def in_parts(records: Iterable[R], source: Source, by: str) -> list[R]:
    """The records of a source, each with its part.

    Raises:
        DataError: `by` category, and a record has none.
    """
    if by == "source":
        return [replace(one, part=source.name) for one in records]
    found = [replace(one, part="" if isinstance(one, Document) else one.category) for one in records]
    if bare := sum(not one.part for one in found):
        raise DataError(f"{bare} of {len(found)} {NO_CATEGORY}", path=source.name)
    return found


def by_part(records: Iterable[R]) -> dict[str, list[R]]:
    """The records of each part, in the order the parts come."""
    found: dict[str, list[R]] = {}
    for record in records:
        found.setdefault(record.part, []).append(record)
    return found


def with_epochs(rows: list[Any], sources: Sequence[Source], seed: int) -> list[Any]:
    """The rows, each as often as `epochs` of its source says, part by part; as they are where no source has any."""
    wanted = {source.name: source.epochs for source in sources if source.epochs is not None}
    if not wanted:
        return rows
    own: dict[str, list[Any]] = {}
    for row in rows:
        own.setdefault(row["part"], []).append(row)
    return [
        part[at]
        for name, part in own.items()
        for at in repeated(len(part), wanted.get(name, 1.0), f"epochs/{seed}/{name}")
    ]


@dataclass(frozen=True, slots=True)
class MixturePhase:
    """Steps `first` to before `end`, which go from the shares `before` to `after`, or have `after` from the start."""

    title: str
    first: int
    end: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    linear: bool

    def shares(self, step: int) -> dict[str, float]:
        """Of each part at a step of the phase."""
        done = (step + 1 - self.first) / (self.end - self.first) if self.linear else 1.0
        return {name: (1 - done) * self.before[name] + done * self.after[name] for name in self.after}


class MixedOrder:
    """The rows of every step.

    Args:
        section: what a step takes of each part.
        parts: the part of every row.
        rows_per_step: rows of one step over all ranks.
        steps: of the whole training, over which `anneal` goes.
        seed: of the orders in which a part's rows come.
        stage: for messages.

    Raises:
        RecipeError: weights that name no part of the rows, or a part of the rows without weight.
        EmptyDatasetError: there is no row.
    """

    def __init__(
        self,
        section: MixtureSection,
        parts: Sequence[str],
        *,
        rows_per_step: int,
        steps: int,
        seed: int,
        stage: str = "",
    ):
        if not parts:
            raise EmptyDatasetError("there are no rows to mix: add data")
        self.section, self.rows_per_step, self.seed = section, rows_per_step, seed
        self.rows_of: dict[str, list[int]] = {}
        for row, part in enumerate(parts):
            self.rows_of.setdefault(part, []).append(row)
        if problems := section.name_problems(self.rows_of, left=True):
            key = f"{stage}.mixture" if stage else "mixture"
            raise RecipeError([f"{key}.{table}: {sentence}" for table, sentence in problems])
        self.phases = list(self._phases(steps))
        self._dealer = Dealer(list(self.rows_of))
        self._taken = [dict.fromkeys(self.rows_of, 0)]  # of each part before step 0, 1, …, as far as was asked
        self._passes: dict[tuple[str, int], list[int]] = {}

    def _phases(self, steps: int) -> Iterator[MixturePhase]:
        sizes = {name: len(rows) for name, rows in self.rows_of.items()}
        weights = self.section.weights
        now = tempered(sizes, self.section.temperature) if weights is None else self._shares(weights)
        firsts = [round(phase.start * steps) for phase in self.section.anneal]
        yield MixturePhase("start", 0, firsts[0] if firsts else steps, now, now, linear=False)
        for phase, (first, end) in zip(self.section.anneal, pairwise([*firsts, steps]), strict=True):
            then = self._shares(phase.weights)
            yield MixturePhase(phase.title, first, end, now, then, linear=phase.change == "linear")
            now = then

    def _shares(self, weights: Mapping[str, float]) -> dict[str, float]:
        total = sum(weights.values())
        return {name: weights[name] / total for name in self.rows_of}

    def shares(self, step: int) -> dict[str, float]:
        """Of each part at `step`, counted from 0; those of the last step beyond the end."""
        whole = [phase for phase in self.phases if phase.end > phase.first]
        phase = next((one for one in whole if step < one.end), None)
        return whole[-1].shares(whole[-1].end - 1) if phase is None else phase.shares(step)

    def taken(self, steps: int) -> dict[str, int]:
        """Rows of each part that the first `steps` steps take."""
        while len(self._taken) <= steps:
            dealt = self._dealer.deal(self.rows_per_step, self.shares(len(self._taken) - 1))
            self._taken.append({name: count + dealt[name] for name, count in self._taken[-1].items()})
        return self._taken[steps]

    def rows(self, step: int) -> list[int]:
        """Indices of the rows of `step`, part by part."""
        until, since = self.taken(step + 1), self.taken(step)
        return [self._row(name, at) for name in self.rows_of for at in range(since[name], until[name])]

    def _row(self, name: str, at: int) -> int:
        """The row that a part gives as its `at`-th, from 0."""
        number, place = divmod(at, len(self.rows_of[name]))
        if (name, number) not in self._passes:
            self._passes = {key: order for key, order in self._passes.items() if key[0] != name or key[1] == number - 1}
            order = list(self.rows_of[name])
            random.Random(f"mixture/{self.seed}/{name}/{number}").shuffle(order)
            self._passes[name, number] = order
        return self._passes[name, number][place]

    def drawn(self, steps: int) -> dict[str, Any]:
        """For the summary: what the first `steps` steps took of each part, over all and, annealed, by phase."""
        found: dict[str, Any] = {"by": self.section.by, "parts": drawn_of(self.taken(steps), self.sizes)}
        if self.section.anneal:
            found["phases"] = [self._drawn_in(one, min(one.end, steps)) for one in self.phases if one.first < steps]
        return found

    def _drawn_in(self, phase: MixturePhase, end: int) -> dict[str, Any]:
        until, since = self.taken(end), self.taken(phase.first)
        own = {name: until[name] - since[name] for name in until}
        return {"name": phase.title, "steps": [phase.first + 1, end], "drawn": own}

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each part."""
        return {name: len(rows) for name, rows in self.rows_of.items()}


def drawn_of(drawn: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Of each part: how many `rows` it has, how many were `drawn`, how often that is (`epochs`), and its `share`."""
    total = max(sum(drawn.values()), 1)
    return {
        name: {
            "rows": rows,
            "drawn": drawn[name],
            "epochs": round(drawn[name] / rows, 3),
            "share": round(drawn[name] / total, 4),
        }
        for name, rows in sizes.items()
    }


def drawn_by_weight(reports: Iterable[ReadReport]) -> dict[str, Any]:
    """For the summary, of sources with `weight`: records, and how many of them were taken."""
    sizes: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    for report in reports:
        sizes[report.source] += report.records
        drawn[report.source] += report.drawn or 0
    return {"by": "weight", "parts": drawn_of(drawn, sizes)}


def drawn_by_epochs(rows: Sequence[Any], repeated_rows: Sequence[Any]) -> dict[str, Any]:
    """For the summary, of sources with `epochs`: what one pass over the repeated rows takes of each."""
    sizes, drawn = (Counter(row["part"] for row in every) for every in (rows, repeated_rows))
    return {"by": "epochs", "parts": drawn_of(drawn, sizes)}
