"""Steps in words that say how often they go over the data: "1,000 steps = 12.7 epochs of 5,000 rows"."""

from __future__ import annotations

import math

from align.recipe.section import StageSection


def epochs_of(steps: int, batch_size: int, rows: int) -> float:
    """Passes over `rows` that so many steps of `batch_size` rows make, of which one may reach into the next pass."""
    return steps * batch_size / max(rows, 1)


def epochs_of_whole_passes(steps: int, batch_size: int, rows: int) -> float:
    """The same where the last step of a pass takes what is left of it, as supervised stages do."""
    return steps / max(math.ceil(rows / batch_size), 1)


def in_epochs(steps: int, epochs: float, rows: int, *, step: str = "steps", row: str = "rows") -> str:
    """`1,000 steps = 12.7 epochs of 5,000 rows`."""
    epochs = f"{epochs:.3g}"
    return f"{steps:,} {step} = {epochs} epoch{'' if epochs == '1' else 's'} of {rows:,} {row}"


def too_many_epochs(section: StageSection, epochs: float) -> str | None:
    """A warning where that is more than is known to help, with by whom; else None."""
    if section.most_epochs is None or epochs <= section.most_epochs:
        return None
    return f"{epochs:.3g} epochs are more than {section.most_epochs:g}: {section.why_most}"
