"""The figures of a report by name, in the sections that show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from align.report.curves import gold_against_proxy, losses, ppo_panels, preference, rejection_panels
from align.report.reward_figures import accuracies, reliability, score_distributions
from align.report.svg import Panel, Picture, pictures
from align.runs.run_files import Run

FIGURES: dict[str, Callable[[Run], Iterator[Panel]]] = {
    "losses": losses,
    "preference": preference,
    "accuracy": accuracies,
    "scores": score_distributions,
    "reliability": reliability,
    "rejection": rejection_panels,
    "ppo": ppo_panels,
    "gold": gold_against_proxy,
}


def draw_all(run: Run) -> dict[str, list[Picture]]:
    """The panels of every figure; none where there is nothing to show."""
    return {name: pictures(panels(run), name) for name, panels in FIGURES.items()}
