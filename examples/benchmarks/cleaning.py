"""What cleaning costs a row, step by step, at sizes ten times apart: CPU seconds, memory and disk.

    python examples/benchmarks/cleaning.py [--sizes 10000 100000 1000000] [--out FOLDER]
    python examples/benchmarks/cleaning.py --write rows.jsonl --sizes 100000      the rows alone, for other programs

Rows are chats as they come: replies of a log-normal length (median 100 words), words as frequent as in natural text
(Zipf), one in ten in Chinese, a third after one of 300 templates; 4 % repeat an earlier row, 4 % do so with a word in
fifty changed, 1 % hold an evaluation prompt, 3 % have something that a step drops. They are the same in every process.

A size has three processes: reading alone; `align data convert` with all fifteen steps on, each timed by itself; and
`align data split` with `align data stats` of what is left. The file is read row by row, so the peaks are to stay as
sizes grow; that of a step alone, over reading, is measured at the middle size.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
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
    asked = _text(rng, language, min(400, max(3, round(rng.lognormvariate(3.0, 0.8)))))
    said = _text(rng, language, min(2000, max(1, round(rng.lognormvariate(4.6, 0.9)))))
    if rng.random() < 1 / 3:
        asked = f"{_text(random.Random(f'template/{rng.randrange(300)}'), language, 15)}\n{asked}"
    if kind < 0.09:
        asked = f"{asked}\n{evaluation_prompt(rng.randrange(PROMPTS))}"
    return asked, rng.choice(BROKEN) + said if kind < 0.12 else said


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
    """Reading alone, or one step after it."""
    from data_formats import Demonstration, stream
    from data_formats.cleaning import Cleaner

    turns.begin()
    rows = Cleaner([one for one in _steps() if one.name == case.get("step")])
    turns.end(sum(1 for _ in rows.clean(stream(case["file"], Demonstration))))


def convert(case: Case, turns: Turns) -> None:
    """`align data convert`, its steps timed."""
    from data_formats import Demonstration, stream, write_jsonl
    from data_formats.cleaning import Cleaner

    steps = [Timed(one) for one in _steps()]
    cleaner = Cleaner(steps)
    turns.begin()
    write_jsonl(Path(case["file"]).with_name("clean.jsonl"), cleaner.clean(stream(case["file"], Demonstration)))
    seconds = {one.name: one.seconds for one in steps}
    seen = {one.name: one.seen for one in cleaner.report.steps}
    dropped = {one.name: one.dropped.total() for one in cleaner.report.steps}
    turns.end(cleaner.report.rows, seconds=seconds, seen=seen, dropped=dropped, disk=_disk())
