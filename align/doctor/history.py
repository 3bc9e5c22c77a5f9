"""What the rules look at: the logged lines of a ppo stage, its sample replies and the settings it ran with."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from align.doctor.series import Series
from align.runs.run_files import Row, StageFiles, number

ITERATION = "score/mean"  # stands in every line that an iteration wrote, in no line of an evaluation
LARGEST = 3.4e38  # of float32


@dataclass(frozen=True, slots=True)
class History:
    """A ppo stage as it went.

    Attributes:
        stage: its files; every line of `metrics` and `samples` has a whole number as step, in the order written.
        settings: the ppo section of its recipe.yaml as plain values, `{}` when there is none.
        problems: a sentence for each file that is not whole.
    """

    stage: StageFiles
    settings: Row = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def iterations(self) -> list[Row]:
        """The lines of iterations, in the order they were written; not those of evaluations."""
        return [line for line in self.stage.metrics if ITERATION in line]

    def series(self, key: str) -> Series:
        """A figure over the steps; what is missing, not finite or too large for float32 is left out."""
        steps, values = self.stage.series(key)
        return Series(tuple(int(step) for step in steps), tuple(values)).where(lambda value: abs(value) <= LARGEST)

    def setting(self, key: str) -> Any:
        """A value of the ppo section such as `policy.learning_rate`; None when it is not there."""
        return reduce(
            lambda inner, part: inner.get(part) if isinstance(inner, dict) else None, key.split("."), self.settings
        )

    def amount(self, key: str) -> float | None:
        """A setting that is a finite number, else None."""
        return number(self.setting(key))

    @property
    def has_critic(self) -> bool:
        """Whether a critic is trained, as far as the files say: one that is has a learning rate in the log."""
        logged = any("lr/critic" in line for line in self.iterations)
        return logged or self.setting("advantage") in (None, "gae")

    def trained(self) -> History:
        """The same without the iterations in which the critic alone was trained; evaluations stay."""
        steps = {line["step"] for line in self.iterations if any(key.startswith("policy/") for key in line)}
        kept = [line for line in self.stage.metrics if ITERATION not in line or line["step"] in steps]
        samples = [row for row in self.stage.samples if row["step"] in steps]
        return replace(self, stage=replace(self.stage, metrics=kept, samples=samples))

    def sampled(self, *keys: str) -> dict[int, list[tuple[float, ...]]]:
        """Step to the figures `keys` of each sample reply of that step that has them all."""
        found: dict[int, list[tuple[float, ...]]] = defaultdict(list)
        for row in self.stage.samples:
            values = tuple(
                value for key in keys if (value := number(row.get(key))) is not None and abs(value) <= LARGEST
            )
            if len(values) == len(keys):
                found[row["step"]].append(values)
        return dict(found)
