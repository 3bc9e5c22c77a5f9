"""What the rules look at: the logged lines of a ppo stage, its sample replies and the settings it ran with."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from align.doctor.series import Series
from align.report.run import Row, StageFiles, number

ITERATION = "score/mean"  # stands in every line that an iteration wrote, in no line of an evaluation


@dataclass(frozen=True, slots=True)
class History:
    """A ppo stage as it went.

    Attributes:
        stage: its files; `stage.metrics` in the order they were written.
        settings: the ppo section of its recipe.yaml as plain values, `{}` when there is none.
        problems: a sentence for each file that is not whole.
    """

    stage: StageFiles
    settings: Row = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def iterations(self) -> list[Row]:
        """The lines of iterations, in the order they were written; not those of evaluations."""
        return [line for line in self.stage.metrics if ITERATION in line and number(line.get("step")) is not None]

    def series(self, key: str) -> Series:
        """A figure over the steps; what is missing or not finite is left out."""
        steps, values = self.stage.series(key)
        return Series(tuple(int(step) for step in steps), tuple(values))

    def setting(self, key: str) -> Any:
        """A value of the ppo section such as `policy.learning_rate`; None when it is not there."""
        return reduce(
            lambda inner, part: inner.get(part) if isinstance(inner, dict) else None, key.split("."), self.settings
        )

    def amount(self, key: str) -> float | None:
        """A setting that is a finite number, else None."""
        return number(self.setting(key))

    def trained(self) -> History:
        """The same without the iterations in which the critic alone was trained; evaluations stay."""
        steps = {line["step"] for line in self.iterations if any(key.startswith("policy/") for key in line)}
        kept = [line for line in self.stage.metrics if ITERATION not in line or line.get("step") in steps]
        samples = [row for row in self.stage.samples if row.get("step") in steps]
        return replace(self, stage=replace(self.stage, metrics=kept, samples=samples))

    def sampled(self, *keys: str) -> dict[int, list[tuple[float, ...]]]:
        """Step to the figures `keys` of each sample reply of that step that has them all."""
        found: dict[int, list[tuple[float, ...]]] = defaultdict(list)
        for row in self.stage.samples:
            step, values = number(row.get("step")), [number(row.get(key)) for key in keys]
            if step is not None and None not in values:
                found[int(step)].append(tuple(value for value in values if value is not None))
        return dict(sorted(found.items()))
