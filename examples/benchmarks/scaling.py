"""What an iteration of PPO costs against the length of replies and prompts, their number, the vocabulary and the model.

    python examples/benchmarks/scaling.py [--axes reply prompt replies batch vocabulary width memory] [--rounds 3]
    python examples/benchmarks/scaling.py --draw FOLDER docs/assets

Each axis changes one size of a small case of `ppo.py` and leaves the others. A table gives the exponent of growth, the
slope of a straight line through log(CPU seconds) over log(size), and the memory that one more unit takes, the slope of
a line through the peaks; `memory` is the number of replies at a vocabulary of 151,936, four to a micro-batch. With
--out the figures are kept; --draw makes the pictures of them (`scaling.png`, `scaling-dark.png`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import measuring
import ppo
import trl_environment
from measuring import GIB, Case

BASE = {**ppo.SHAPE, "prompts": 8, "shortest": 64, "longest": 64, "times": 2, "length": 64, "words": ""}
LARGE = BASE | {"vocab": 151_936, "times": 1, "length": 128, "layers": 2, "micro": 4, "set": ["micro_batch_size=4"]}


def _prompt(length: int) -> Case:
    return BASE | {"shortest": length, "longest": length}


AXES: dict[str, tuple[str, Callable[[int], Case], tuple[int, ...]]] = {
    "reply": ("tokens of a reply", lambda size: BASE | {"length": size}, (32, 64, 128, 256)),
    "prompt": ("tokens of a prompt", _prompt, (64, 128, 256, 512)),
    "replies": ("replies to a prompt", lambda size: _prompt(256) | {"prompts": 4, "times": size}, (1, 2, 4, 8)),
    "batch": ("prompts of an iteration", lambda size: BASE | {"prompts": size}, (4, 8, 16, 32)),
    "vocabulary": ("vocabulary", lambda size: BASE | {"vocab": size}, (2048, 8192, 32_768, 131_072)),
    "width": ("width of the model", lambda size: BASE | {"width": size}, (128, 256, 512)),
    "memory": ("replies, vocabulary 151,936", lambda size: LARGE | {"prompts": size}, (4, 8, 16)),
}
TINY = ppo.TINY | {"times": 2}
SIDES = ("align", "trl")


def exponent(points: Iterable[tuple[float, float]]) -> float:
    """k of y ~ x^k."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    return linear_regression(*zip(*logs, strict=True)).slope


def curve(result: dict[str, Any], axis: str, side: str, figure: str) -> list[tuple[float, float]]:
    """(size, median over the rounds) along an axis."""
    return [
        (case["size"], median(turn[figure] for turn in case["sides"][side]))
        for case in result["cases"]
        if case["axis"] == axis and side in case["sides"]
    ]


def table(result: dict[str, Any]) -> str:
    """Exponents and slopes, by axis and side."""
    sides = list(dict.fromkeys(side for case in result["cases"] for side in case["sides"]))
    head = ["size", "from–to", *(f"{side}: CPU s, first to last; exponent; MiB a unit" for side in sides)]
    rows = [head, ["---"] * len(head)]
    for axis in dict.fromkeys(case["axis"] for case in result["cases"]):
        sizes = [case["size"] for case in result["cases"] if case["axis"] == axis]
        row = [AXES[axis][0], f"{min(sizes):,}–{max(sizes):,}"]
        for side in sides:
            cpu, peak = (curve(result, axis, side, figure) for figure in ("cpu", "peak"))
            if len(cpu) < 2:
                row.append("")
                continue
            memory = linear_regression(*zip(*peak, strict=True)).slope / 2**20
            row.append(f"{cpu[0][1]:.3g} to {cpu[-1][1]:.3g}; {exponent(cpu):.2f}; {memory:.3g}")
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw(result: dict[str, Any], folder: Path) -> None:
    """A panel an axis: CPU seconds over the size, both logarithmic; for `memory` the peak."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    from align.report.style import DARK, LIGHT, legend, line, panels, png

    axes_shown = list(dict.fromkeys(case["axis"] for case in result["cases"]))
    sides = list(dict.fromkeys(side for case in result["cases"] for side in case["sides"]))

    def figure(theme: Any) -> Any:
        made, every = panels(len(axes_shown), 3, width=10.5, height=2.9)
        for axes, axis in zip(every, axes_shown, strict=False):
            what, scale = ("peak", GIB) if axis == "memory" else ("cpu", 1.0)
            for side, color in zip(sides, (theme.blue, theme.orange), strict=False):
                points = curve(result, axis, side, what)
                fitted = f"{side}, exponent {exponent(points):.2f}"
                line(axes, ([x for x, _ in points], [y / scale for _, y in points]), fitted, color, marker="o")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            sizes = sorted({case["size"] for case in result["cases"] if case["axis"] == axis})
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
            low, high = axes.get_ylim()
            axes.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
            axes.set(title=AXES[axis][0], ylabel="peak GiB" if axis == "memory" else "CPU seconds")
            legend(axes, loc="upper left")
        return made

    for theme in (LIGHT, DARK):
        (folder / f"scaling{theme.suffix}.png").write_bytes(png(figure, theme) or b"")


def main(argv: list[str] | None = None) -> None:
    """As the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS", help=", ".join(AXES))
    parser.add_argument("--sides", nargs="+", choices=ppo.SIDES, default=list(SIDES), metavar="SIDE")
    parser.add_argument("--rounds", type=measuring.how_many, default=3, help="rounds that are counted (default 3)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write figures and table there, over older ones")
    parser.add_argument("--draw", type=Path, nargs=2, metavar=("FOLDER", "ASSETS"), help="measure nothing; draw")
    parser.add_argument("--tiny", action="store_true", help="sizes at which it can be tried in a minute")
    parser.add_argument("--venv", type=Path, help=f"TRL's environment (default {trl_environment.default_folder()})")
    asked = parser.parse_args(argv)
    if asked.draw:
        draw(json.loads((asked.draw[0] / "scaling.json").read_text(encoding="utf-8")), asked.draw[1])
        return
    pythons = dict.fromkeys(asked.sides, sys.executable) | ppo.pythons(asked)
    result: dict[str, Any] = {"subject": "scaling", "unit": "iteration", "rounds": asked.rounds}
    result |= {"machine": measuring.machine(), "cases": []}
    for axis in asked.axes:
        words, make, sizes = AXES[axis]
        for size in sizes[:2] if asked.tiny else sizes:
            case = make(size) | (TINY if asked.tiny else {})
            print(f"scaling: {size:,} {words}", file=sys.stderr, flush=True)
            sides = measuring.measure(ppo.__file__, case, pythons, asked.rounds)
            result["cases"].append({"axis": axis, "size": size, "case": case, "sides": sides})
        if asked.out is not None:
            measuring.write(result, asked.out, table)
    print(table(result))


if __name__ == "__main__":
    main(sys.argv[1:])
