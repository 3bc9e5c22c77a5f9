"""The page of a reward card (`align reward-card`): one file that needs nothing else and has no script.

Made of what card.json holds. Every text goes through the template's escaping.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from align.evaluation.table import percent
from align.runtime.terminal import printable

TEMPLATES = Path(__file__).parent / "templates"
SHADES = ((0.75, "up2"), (0.5, "up1"), (0.25, "down1"))  # of a share of at least so much; else down2


def render(card: Mapping[str, Any]) -> str:
    """HTML of the card.

    Args:
        card: as `align.evaluation.reward_card.card.make_card` makes it, with `made`: words of how it was measured.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {"percent": percent, "shade": shade}
    return environment.get_template("reward_card.html").render(card=card)


def _visible(value: Any) -> Any:
    return type(value)(printable(value)) if isinstance(value, str) else value


def shade(share: float) -> str:
    """The class of a cell of RM-Bench's matrix."""
    return next((name for least, name in SHADES if share >= least), "down2")
