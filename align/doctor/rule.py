"""A rule: one symptom, how it is seen, what it may come from and what to change; and the registry of all rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from align.doctor.history import History
from align.doctor.series import Series

Severity = Literal["problem", "note"]
ADVICE = ("causes", "changes")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen: a sentence, the steps it was seen at, and the figures by their name in metrics.jsonl."""

    words: str
    steps: tuple[int, int]
    figures: dict[str, float]


Examine = Callable[[History], Evidence | None]


@dataclass(frozen=True, slots=True)
class DiagnosticRule:
    """One symptom.

    Attributes:
        severity: `problem` when the result of the run is in doubt, `note` for what is worth knowing.
        needs: figures of metrics.jsonl it cannot do without; with `either`, it can look when one of them is there.
        settings: keys of the ppo section it cannot do without.
        least: logged points a needed figure must have.
        trained: it looks at iterations that trained the policy, not at the critic's warm-up.
    """

    name: str
    severity: Severity
    title: str
    needs: tuple[str, ...]
    causes: tuple[str, ...]
    changes: tuple[str, ...]
    examine: Examine
    either: bool = False
    settings: tuple[str, ...] = ()
    least: int = 5
    trained: bool = False

    def without_critic(self) -> DiagnosticRule:
        """The same for a run that has none: nothing comes from it, and nothing of it can be changed."""
        kept = {name: tuple(words for words in getattr(self, name) if "critic" not in words) for name in ADVICE}
        return replace(self, **kept)

    def why_not(self, history: History) -> str:
        """Why it cannot look at `history` (as the rule itself is given it); empty when it can."""
        if not history.has_critic and any(key.startswith("value/") for key in self.needs):
            return "the run has no critic"
        points = {key: len(history.series(key)) for key in self.needs}
        short = [key for key, count in points.items() if count < self.least]
        if short and (len(short) == len(points) or not self.either):
            words = [f"{key} has {points[key]} of {self.least} points" if points[key] else f"no {key}" for key in short]
            return ", ".join(words)
        return ", ".join(f"recipe.yaml says no ppo.{key}" for key in self.settings if history.amount(key) is None)


RULES: dict[str, DiagnosticRule] = {}


def rule(
    name: str,
    severity: Severity,
    title: str,
    *,
    needs: tuple[str, ...] = (),
    causes: tuple[str, ...],
    changes: tuple[str, ...],
    either: bool = False,
    settings: tuple[str, ...] = (),
    least: int = 5,
    trained: bool = False,
) -> Callable[[Examine], Examine]:
    """Register the decorated function as the rule `name`; see `DiagnosticRule`."""

    def register(examine: Examine) -> Examine:
        if name in RULES:
            raise ValueError(f"two rules are called {name}")
        RULES[name] = DiagnosticRule(
            name, severity, title, needs, causes, changes, examine, either, settings, least, trained
        )
        return examine

    return register


def seen(words: str, series: Series, **figures: float) -> Evidence:
    """Evidence over the steps of `series`; figures are named with `__` for `/`. `{span}` in the words is filled in."""
    named = {name.replace("__", "/"): figure for name, figure in figures.items()}
    return Evidence(words.replace("{span}", series.span), (series.steps[0], series.steps[-1]), named)
