"""rich's console, with the texts given to it made printable, and read as texts rather than as rich's markup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from align.runtime.terminal import printable


class Console(rich.console.Console):
    """`rich.console.Console` for texts of any origin.

    Every text passes through `render` on its way to the screen, rich's own codes do not stand in texts there.
    """

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
