"""The page of a reward card (`align reward-card`): one file that needs nothing else and has no script.

Made of what card.json holds. Every text goes through the template's escaping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.report.template import template

SHADES = ((0.75, "up2"), (0.5, "up1"), (0.25, "down1"))  # of a share of at least so much; else down2


def render(card: Mapping[str, Any]) -> str:
    """HTML of the card.

    Args:
        card: as `align.evaluation.reward_card.card.make_card` makes it, with `made`: words of how it was measured.
    """
    return template("reward_card.html").render(card=card, shade=shade)


def shade(share: float) -> str:
    """The class of a cell of RM-Bench's matrix."""
    return next((name for least, name in SHADES if share >= least), "down2")
