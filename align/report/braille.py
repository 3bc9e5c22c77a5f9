"""A curve in a few lines of text: eight dots a letter, or one bar a letter where the terminal cannot write them."""

from __future__ import annotations

from align.runs.run_files import Series

FIRST = 0x2800
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a letter's two columns, downwards
BARS = "_.-=+*#"


def columns(series: Series, count: int) -> list[float | None]:
    """The means of the values whose steps fall into each of `count` equal parts of the way; None where none does."""
    steps, values = series
    first, way = steps[0], (steps[-1] - steps[0]) or 1.0
    parts: list[list[float]] = [[] for _ in range(count)]
    for step, value in zip(steps, values, strict=True):
        parts[min(int((step - first) / way * count), count - 1)].append(value)
    return [sum(part) / len(part) if part else None for part in parts]


def plot(series: Series, width: int, height: int, *, plain: bool = False) -> list[str]:
    """The curve from its least to its greatest value in `height` lines of at most `width` letters; of a constant, its
    middle. `plain`: one line of bars in ASCII."""
    shown = columns(series, width if plain else 2 * width)
    known = [value for value in shown if value is not None]
    low, high = min(known), max(known)
    rows = (len(BARS) if plain else 4 * height) - 1
    heights = [
        None if value is None else round((value - low) / (high - low) * rows) if high > low else rows // 2
        for value in shown
    ]
    if plain:
        return ["".join(" " if at is None else BARS[at] for at in heights)]
    letters = [[0] * width for _ in range(height)]
    before: tuple[int, int] | None = None
    for column, at in enumerate(heights):
        if at is None:
            continue
        for x, y in _between(before, (column, at)):
            line, dot = divmod(rows - y, 4)
            letters[line][x // 2] |= DOTS[x % 2][dot]
        before = column, at
    return ["".join(chr(FIRST + letter) for letter in line) for line in letters]


def _between(start: tuple[int, int] | None, end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a line that ends at `end`; that of `start` is there already."""
    if start is None:
        return [end]
    (x0, y0), (x1, y1) = start, end
    longer = max(abs(x1 - x0), abs(y1 - y0))
    return [(round(x0 + (x1 - x0) * at / longer), round(y0 + (y1 - y0) * at / longer)) for at in range(1, longer + 1)]
