"""The templates of pages. Every text of a run goes through their escaping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from align.evaluation.table import percent
from align.report.glossary import explained
from align.report.headline import cell
from align.runtime.terminal import printable

TEMPLATES = Path(__file__).parent / "templates"


def template(name: str) -> Template:
    """The template of that name, for one page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {"percent": percent, "cell": cell, "explained": explained}
    return environment.get_template(name)


def _visible(value: Any) -> Any:
    """Every text that the template prints, with what would turn its direction round or hide it as a visible escape."""
    return type(value)(printable(value)) if isinstance(value, str) else value  # jinja's Markup is a str that stays one
