"""The `mixture` section of a stage: what share of every optimizer step each part of its data has, and how that changes.

Every step takes its share of each part, from one pass over the part after another (`align.data.mixture`). That is what
tells it from `weight` and `epochs` of a source, which say how much of it there is: a stage has one of the three.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

from align.recipe.errors import did_you_mean
from align.recipe.fields import Source
from align.recipe.section import Section

Weights = dict[str, Annotated[float, Field(ge=0)]]


class PhaseSection(Section):
    """A part of the training that has weights of its own, from `start` up to the next phase or the end."""

    name: str = ""
    """What reports call it; by default where it starts."""
    start: float = Field(gt=0, lt=1)
    """Share of the stage's steps (of ppo: iterations) that come before it."""
    weights: Weights = Field(min_length=1)
    """Those that it ends with, one for every part; 0 leaves a part out."""
    change: Literal["linear", "at_once"] = "linear"
    """Go there in equal steps, of which the last one has these weights, or have them from its beginning."""

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.name or f"from {self.start:.0%}"


class MixtureSection(Section):
    """What each optimizer step takes of each part of the data.

    Shares count rows (pairs of comparisons, packed rows, prompts of ppo), not tokens. A part that is used up begins
    anew in another order; the summary says how often each one was seen. `anneal` changes the shares over the training:
    good data last, as Llama 3 did (2407.21783, sections 3.1.3 and 3.4.3).
    """

    by: Literal["source", "category"] = "source"
    """What a part is: a source of `data`, by its name (its path as written there, or `hub:` and its id), or all
    records of a category."""
    weights: Weights | None = Field(None, min_length=1)
    """Shares of the parts up to a common factor, one for every part; without them `temperature` makes them of sizes.
    0 only for a part that a phase of `anneal` brings in."""
    temperature: float = Field(1.0, gt=0)
    """Without weights: shares go with size to the power of 1 / temperature. 1 is by size, more lifts small parts
    (the exponent 0.3 of mT5 is 3.33)."""
    anneal: tuple[PhaseSection, ...] = ()
    """Phases with other weights, in the order of their starts."""

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        if self.weights is not None and self.temperature != 1:
            broken.append(("temperature", "makes shares of sizes, but weights say them; remove one of the two"))
        starts = [phase.start for phase in self.anneal]
        broken += [
            (f"anneal.{at}.start", f"{later:g} is not after {earlier:g}, where the phase before starts; sort them")
            for at, (earlier, later) in enumerate(pairwise(starts), 1)
            if later <= earlier
        ]
        for key, weights in self.tables():
            if not any(weights.values()):
                broken.append((key, "every weight is 0; give a part a weight above 0"))
        for name, weight in (self.weights or {}).items():
            if weight == 0 and not any(phase.weights.get(name) for phase in self.anneal):
                sentence = "is never trained on; give it more than 0, or leave its data out"
                broken.append(("weights", f"'{name}' has weight 0 and {sentence}"))
        return broken

    def tables(self) -> list[tuple[str, Weights]]:
        """Every table of weights with its key below the section."""
        own = [] if self.weights is None else [("weights", self.weights)]
        return own + [(f"anneal.{at}.weights", phase.weights) for at, phase in enumerate(self.anneal)]

    def name_problems(self, parts: Iterable[str], *, left: bool = False) -> list[tuple[str, str]]:
        """Which weights name no part of the data, and which parts have none: (key, sentence).

        Args:
            left: whether `parts` are those of the rows that are left, and not of what the recipe names.
        """
        known, broken = list(dict.fromkeys(parts)), []
        for key, weights in self.tables():
            for name in weights:
                if name not in known:
                    near = did_you_mean(name, known)
                    hint = f"did you mean '{near}'?" if near else f"there are {', '.join(known)}"
                    sentence = f"no {self.by} of the data is called '{name}'; {hint}"
                    if left and self.by == "source":  # whose names were right when the recipe was read
                        sentence = f"no row of '{name}' is left to train on: keep more of it, or remove the source"
                    broken.append((key, sentence))
            if missing := [name for name in known if name not in weights]:
                sentence = "give every one a weight" + (" (0 leaves it out)" if key != "weights" else "")
                broken.append((key, f"{', '.join(missing)} of the data has no weight; {sentence}"))
        return broken

    def described(self) -> str:
        """For the plan that `align check` prints."""
        if self.weights is not None:
            how = ", ".join(f"{name} {weight:g}" for name, weight in self.weights.items())
        else:
            how = f"sizes at temperature {self.temperature:g}"
        phases = [
            f"{phase.title} {'to' if phase.change == 'linear' else 'with'} other weights" for phase in self.anneal
        ]
        return f"every step mixes by {self.by} ({how})" + (f", annealed {'; '.join(phases)}" if phases else "")


def mixture_rules(section: Any) -> list[tuple[str, str]]:
    """What of a stage's `data` cannot go together with its `mixture`."""
    mixture, sources = section.mixture, section.data
    if mixture is None:
        return []
    sentence = "says how much of a source there is, mixture what a step takes of it; remove one of the two"
    broken = [
        (f"data.{at}.{key}", sentence)
        for at, source in enumerate(sources)
        for key in ("weight", "epochs")
        if getattr(source, key) is not None
    ]
    if mixture.by == "source":
        names = [source.name for source in sources]
        broken += [(f"mixture.{key}", sentence) for key, sentence in mixture.name_problems(names)]
        broken += named_twice(sources, "mixture by source")
    return broken


def epochs_rules(section: Any) -> list[tuple[str, str]]:
    """What does not go together with `epochs` of the sources of a supervised stage."""
    if not any(source.epochs is not None for source in section.data):
        return []
    broken = named_twice(section.data, "epochs")
    if section.max_steps is not None:
        sentence = "says how long to train, and so do the epochs of data; remove it, or use weight or mixture"
        broken.append(("max_steps", sentence))
    if section.num_train_epochs != 1:
        sentence = f"{section.num_train_epochs:g} would multiply the epochs of data; leave it at 1"
        broken.append(("num_train_epochs", sentence))
    return broken


def named_twice(sources: Sequence[Source], what: str) -> list[tuple[str, str]]:
    """The sources whose name another one before them has."""
    names = [source.name for source in sources]
    sentence = f"{what} tells sources apart by their names, and another one is called the same; make one file of both"
    return [(f"data.{at}", sentence) for at, name in enumerate(names) if name in names[:at]]
