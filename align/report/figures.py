"""The figures of a report by name: what draws each, and what it shows to someone who does not see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from align.report.curves import losses, ppo_panel, preference, rejection_panel
from align.report.policy_evaluation import win_tie_loss
from align.report.reward_figures import accuracies, reliability_plot, score_distributions
from align.report.style import DARK, LIGHT, Theme, png
from align.runs.run_files import Run


@dataclass(frozen=True, slots=True)
class ReportFigure:
    """`<name>.png` and `<name>-dark.png`."""

    name: str
    alt: str
    draw: Callable[[Run, Theme], Figure | None]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(f"{self.name}{theme.suffix}.png" for theme in (LIGHT, DARK))


FIGURES = (
    ReportFigure("losses", "Training and held-out loss of base and sft over optimizer steps", losses),
    ReportFigure("preference", "Loss and accuracy of pmp and rm over optimizer steps", preference),
    ReportFigure("accuracy", "Accuracy on held-out pairs with 95 % intervals, beside length alone", accuracies),
    ReportFigure("scores", "Distribution of scores of chosen and rejected held-out replies", score_distributions),
    ReportFigure("reliability", "Share of held-out pairs right over the stated probability", reliability_plot),
    ReportFigure("rejection", "Reward of the best of k replies over k, and scores over rounds", rejection_panel),
    ReportFigure("ppo", "Reward, KL, entropy and other figures of PPO over iterations", ppo_panel),
    ReportFigure("wins", "Share of prompts won, tied and lost by PPO against its start, by category", win_tie_loss),
)


def draw_all(run: Run) -> dict[str, bytes]:
    """File name -> PNG of every figure that has something to show, in both themes."""
    images = {}
    for figure in FIGURES:
        for theme, file in zip((LIGHT, DARK), figure.files, strict=True):
            data = png(lambda theme, draw=figure.draw: draw(run, theme), theme)
            if data is not None:
                images[file] = data
    return images
