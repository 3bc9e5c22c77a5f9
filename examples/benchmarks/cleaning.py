"""What cleaning costs a row, step by step, at sizes ten times apart: CPU time, memory and disk.

    python examples/benchmarks/cleaning.py [--sizes 10000 100000 1000000] [--out FOLDER]
    python examples/benchmarks/cleaning.py --write rows.jsonl --sizes 100000      the rows alone, for other programs

Rows are chats of a length as in Alpaca: replies log-normal with a median of 50 words, words as frequent as in natural
text (Zipf), one in ten in Chinese, a third after one of 300 templates; 4 % repeat an earlier row, 4 % do so with a word
in fifty changed, 1 % hold an evaluation prompt, 3 % have something that a step drops. They are the same in every
process.

At each size four processes do reading alone, `align data convert` with fifteen steps, each timed by itself, `align data
split` and `align data stats`. All read row by row, so peaks are to stay as sizes grow.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import measuring
from measuring import Case, Turns

MIB = 2**20
SIZES = (10_000, 100_000, 1_000_000)
TINY = (300, 600)
PROMPTS = 500  # evaluation prompts
OPTIONS = {"format": "messages", "max_row_mb": 64}
BROKEN = ("Sure.<|im_end|>", "\ufffd", "😀😀😀😀😀😀 ", "I'm sorry, but no. ", "\u200b", "again and again " * 60)
RULES = {
    "replacement_characters": "drop",
    "invisible_characters": "strip",
    "mismatched_roles": True,
    "control_tokens": "drop",
    "length": {"max_reply_chars": 20_000},
    **{name: {} for name in ("repetition", "apologies", "emoji", "exclamations", "near_duplicates")},
}


@cache
def _words() -> list[tuple[list[str], list[float], str]]:
    """English, then Chinese: words, how frequent they are (cumulative), and what stands between two."""
    rng = random.Random(0)
    english = ["".join(rng.choices("etaoinshrdlucmfwyp", k=rng.randint(2, 9))) for _ in range(20_000)]
    chinese = ["".join(chr(rng.randint(0x4E00, 0x9FA0)) for _ in range(rng.randint(1, 3))) for _ in range(5_000)]
    return [
        (words, list(accumulate(1 / rank for rank in range(1, len(words) + 1))), space)
        for words, space in ((english, " "), (chinese, ""))
    ]


def _text(rng: random.Random, language: int, count: int) -> str:
    words, frequent, space = _words()[language]
    drawn = rng.choices(words, cum_weights=frequent, k=count)
    lines = [drawn[at : at + 40] for at in range(0, count, 40)]
    return "\n".join(space.join(line) + ("." if space else "。") for line in lines)


def evaluation_prompt(number: int) -> str:
    """A prompt of 20 to 60 words that no row is to hold."""
    rng = random.Random(f"evaluation/{number}")
    return _text(rng, 0, rng.randint(20, 60))


def chat(number: int) -> tuple[str, str]:
    """Row `number`, from 0: what is asked and what is answered."""
    rng = random.Random(number)
    kind = rng.random()
    if number and kind < 0.08:
        asked, said = chat(rng.randrange(number))
        if kind < 0.04:
            return asked, said
        space = " " if " " in said else ""
        words = said.split(" ") if space else list(said)
        for _ in range(len(words) // 50 + 1):
            words[rng.randrange(len(words))] = rng.choice(_words()[0 if space else 1][0])
        return asked, space.join(words)
    language = int(rng.random() < 0.1)
    asked = _text(rng, language, min(400, max(3, round(rng.lognormvariate(2.7, 0.8)))))
    said = _text(rng, language, min(2000, max(1, round(rng.lognormvariate(3.9, 0.9)))))
    if rng.random() < 1 / 3:
        asked = f"{_text(random.Random(f'template/{rng.randrange(300)}'), language, 15)}\n{asked}"
    if kind < 0.09:
        asked = f"{asked}\n{evaluation_prompt(rng.randrange(PROMPTS))}"
    return asked, rng.choice(BROKEN) + said if 0.09 <= kind < 0.12 else said


def write_rows(path: Path, count: int) -> None:
    """The first rows as JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        for asked, said in map(chat, range(count)):
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")


class Timed:
    """A step, and the CPU seconds that it took."""

    def __init__(self, step: Any):
        self.step, self.name, self.looks_for, self.seconds = step, step.name, step.looks_for, 0.0

    def check(self, record: Any) -> Any:
        """What the step finds."""
        began = time.process_time()
        found = self.step.check(record)
        self.seconds += time.process_time() - began
        return found


def _steps() -> list[Any]:
    from align.data.cleaning import build_steps
    from align.recipe.cleaning_section import CleaningSection
    from data_formats.cleaning import Decontamination
    from data_formats.records import Message, Prompt

    steps = build_steps(CleaningSection.model_validate(RULES))
    prompts = [Prompt((Message("user", evaluation_prompt(number)),)) for number in range(PROMPTS)]
    return [*steps[:-2], Decontamination(prompts), *steps[-2:]]  # duplicates last


def _disk() -> int:
    """Bytes of the nameless files that this process holds open (Linux)."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").endswith(" (deleted)"):
                total += os.stat(f"/proc/self/fd/{name}").st_size
    return total


def read(case: Case, turns: Turns) -> None:
    """Reading alone."""
    from data_formats import Demonstration, stream

    turns.begin()
    turns.end(sum(1 for _ in stream(case["file"], Demonstration)))


def convert(case: Case, turns: Turns) -> None:
    """`align data convert`, its steps timed."""
    from data_formats import Demonstration, stream, write_jsonl
    from data_formats.cleaning import Cleaner

    steps = [Timed(one) for one in _steps()]
    cleaner = Cleaner(steps)
    turns.begin()
    write_jsonl(f"{case['file']}.clean.jsonl", cleaner.clean(stream(case["file"], Demonstration)))
    figures = {
        one.name: (step.seconds, one.seen, one.dropped.total())
        for step, one in zip(steps, cleaner.report.steps, strict=True)
    }
    turns.end(cleaner.report.rows, steps=figures, left=cleaner.report.records, disk=_disk())


def split(case: Case, turns: Turns) -> None:
    """`align data split` of the same rows, without cleaning."""
    from align.commands.convert import split as work

    turns.begin()
    work(Path(case["file"]), Path(f"{case['file']}.sides"), 0.1, "demonstration", OPTIONS, None)
    turns.end(case["size"])


def stats(case: Case, turns: Turns) -> None:
    """`align data stats` of the same rows."""
    from align.commands.stats import measure
    from data_formats import Demonstration

    turns.begin()
    turns.end(measure(Path(case["file"]), Demonstration, OPTIONS).report.rows)


SIDES = {"read": read, "convert": convert, "split": split, "stats": stats}


def table(result: dict[str, Any]) -> str:
    """CPU time of a row, by size, then memory and disk."""
    cases = result["cases"]
    rows = [["", *(f"{case['size']:,} rows" for case in cases), "dropped"], ["---", *["---:"] * (len(cases) + 1)]]

    def row(name: str, figures: Iterable[float], dropped: str = "") -> None:
        rows.append([name, *(f"{figure:,.0f}" for figure in figures), dropped])

    row("reading, µs a row", (1e6 * case["read"]["cpu"] / case["size"] for case in cases))
    for step, (_, _, dropped) in cases[-1]["convert"]["steps"].items():
        seconds = (1e6 * case["convert"]["steps"][step][0] / case["size"] for case in cases)
        row(step, seconds, f"{dropped / cases[-1]['size']:.1%}")
    for side, words in {"convert": "convert with all of it", "split": "split", "stats": "stats"}.items():
        row(f"{words}, µs a row", (1e6 * case[side]["cpu"] / case["size"] for case in cases))
    for side in SIDES:
        row(f"{side}, peak MiB", (case[side]["peak"] / MIB for case in cases))
    row("convert, MiB on disk", (case["convert"]["disk"] / MIB for case in cases))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def _turn(side: str, case: Case) -> dict[str, Any]:
    print(f"cleaning: {side} {case['size']:,} rows", file=sys.stderr, flush=True)
    worker = measuring.Worker(__file__, side, case, sys.executable)
    try:
        return worker.turn()
    finally:
        worker.close()


def main(argv: list[str] | None = None) -> None:
    """As the options say."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--work"]:
        measuring.work(SIDES, argv[1], argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=measuring.how_many, default=list(SIZES), metavar="ROWS")
    parser.add_argument("--write", type=Path, metavar="FILE", help="measure nothing; write the rows of the first size")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="figures and table, over older ones")
    parser.add_argument("--rounds", type=measuring.how_many, default=1, help=argparse.SUPPRESS)  # of `all.py`
    parser.add_argument("--tiny", action="store_true", help="sizes at which it can be tried in a minute")
    asked = parser.parse_args(argv)
    sizes = TINY if asked.tiny else asked.sizes
    if asked.write:
        write_rows(asked.write, sizes[0])
        return
    result: dict[str, Any] = {"subject": "cleaning", "rounds": 1, "machine": measuring.machine(), "cases": []}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            case = {"size": size, "file": f"{folder}/{size}.jsonl"}
            write_rows(Path(case["file"]), size)
            result["cases"].append({"size": size} | {side: _turn(side, case) for side in SIDES})
            if asked.out is not None:
                measuring.write(result, asked.out, table)
            for file in Path(folder).glob(f"{size}.jsonl*"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
    print(table(result))


if __name__ == "__main__":
    main(sys.argv[1:])
