"""Contamination that is planted in training sets: which share decontamination finds, and how often it is wrong.

    python examples/experiments/contamination.py DATA [--show 20]

DATA is a folder of evaluation prompts and training sets as `EVALUATION`, `TRAINING` and `DOCUMENTS` name them, all
public. Each evaluation prompt is changed in each of the ways of `CHANGES` and put into a training row in place of what
it asks, or, without change, into the middle of a document. A detector is a setting of `Decontamination`; those without
`reworded` are n-grams alone, as GPT-3 (13) and Llama 3 (8) count them, the share of PaLM among them. What it drops of
the untouched rows is a false alarm or contamination that was there; --show prints some, to be judged by eye.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from align.evaluation.shares import wilson
from align.runtime.table import table
from data_formats import Demonstration, Document, Message, Prompt, read
from data_formats.cleaning import Decontamination
from data_formats.cleaning.texts import prompt_text
from data_formats.cleaning.units import mostly_unspaced, units
from data_formats.records import Record

EVALUATION = {
    "ifeval": "4_prompts/ifeval.jsonl",
    "mt_bench": "4_prompts/mt_bench.jsonl",
    "gsm8k": "6_checkable/gsm8k_test.jsonl",
    "humaneval": "6_checkable/humaneval.jsonl",
    "vicuna": "4_prompts/vicuna_bench.jsonl",
    "alpacaeval": "4_prompts/alpacaeval_instructions_gpt35.json",
    "belle (zh)": "4_prompts/belle_eval_zh.json",
    "alignbench (zh)": "4_prompts/alignbench_zh.jsonl",
}
TRAINING = {
    "alpaca": "1_sft/alpaca_en.json",
    "alpaca (zh)": "1_sft/alpaca_zh.json",
    "sharegpt (zh)": "1_sft/sharegpt_zh.jsonl.gz",
    "medical (zh)": "1_sft/sharegpt_zh_medical.jsonl",
    "self-instruct": "1_sft/self_instruct_seed_tasks.jsonl",
    "tool calls": "1_sft/toolcall_sharegpt_en.json",
    "tool calls (zh)": "1_sft/toolcall_sharegpt_zh.json",
    "kto": "2_preference/kto_unpaired_en.json",
    "gsm8k, train": "6_checkable/gsm8k_train.jsonl",
}
DOCUMENTS = {"c4": "5_text/c4_en.jsonl", "wikipedia": "5_text/wiki_en.txt"}
PART = 4000  # characters of a document
DETECTORS: dict[str, dict[str, float | None]] = {
    "default": {},
    "13-grams": {"reworded": None},
    "13-grams, half of them": {"reworded": None, "min_share": 0.5},
    "8-grams": {"reworded": None, "n": 8, "chinese_n": 8},
    "8-grams, 70 %": {"reworded": None, "n": 8, "chinese_n": 8, "min_share": 0.7},
    "reworded 0.5": {"reworded": 0.5},
    "reworded 0.8": {"reworded": 0.8},
}
SYNONYMS = {
    "write": "compose", "give": "provide", "explain": "describe", "create": "make", "make": "build", "show": "display",
    "find": "determine", "list": "enumerate", "suggest": "propose", "help": "assist", "need": "require", "want": "wish",
    "buy": "purchase", "buys": "purchases", "get": "obtain", "gets": "obtains", "start": "begin", "big": "large",
    "small": "little", "many": "numerous", "each": "every", "every": "each", "about": "regarding", "also": "too",
    "more": "further", "should": "ought to", "must": "has to", "can": "is able to", "how": "in what way",
    "are": "were", "is": "was", "total": "overall", "people": "persons", "day": "date", "week": "seven days",
    "using": "with", "use": "employ", "contains": "has", "following": "next", "different": "distinct", "if": "when",
    "请": "麻烦", "如何": "怎样", "什么": "啥", "哪些": "哪几个", "写": "撰写", "给出": "提供", "一个": "一种",
}  # fmt: skip
Change = Callable[[str, random.Random], str]


def _spaced(text: str) -> tuple[list[str], str]:
    """The words with their marks and what stands between them; characters where there are no blanks."""
    unspaced = mostly_unspaced(units(text))
    return (list(text), "") if unspaced else (text.split(), " ")


def swapped(share: float, pool: Sequence[str]) -> Change:
    """Words (or characters) replaced by those of another text, each with that probability."""

    def change(text: str, rng: random.Random) -> str:
        words, space = _spaced(text)
        other, _ = _spaced(rng.choice(pool))
        return space.join(rng.choice(other or ["so"]) if rng.random() < share else word for word in words)

    return change


def left_out(text: str, rng: random.Random) -> str:
    """A word in ten is missing."""
    words, space = _spaced(text)
    return space.join(word for word in words if rng.random() >= 0.1)


def first_half(text: str, rng: random.Random) -> str:
    """Cut short."""
    words, space = _spaced(text)
    return space.join(words[: (len(words) + 1) // 2])


def case_and_marks(text: str, rng: random.Random) -> str:
    """In capitals, without punctuation, each word a line."""
    return "\n".join(re.sub(r"[^\w\s]", "", text.upper()).split())


def synonyms(text: str, rng: random.Random) -> str:
    """Other words for frequent ones, after a courtesy."""
    pattern = r"\b(?:" + "|".join(word for word in SYNONYMS if word.isascii()) + r")\b|"
    pattern += "|".join(word for word in SYNONYMS if not word.isascii())
    return "Could you do this for me? " + re.sub(pattern, lambda m: SYNONYMS[m[0].lower()], text, flags=re.IGNORECASE)


def reordered(text: str, rng: random.Random) -> str:
    """Sentences from the last to the first."""
    return " ".join(reversed(re.split(r"(?<=[.!?。！？\n])\s*", text.strip())))


def other_numbers(text: str, rng: random.Random) -> str:
    """Every number is another one."""
    return re.sub(r"\d+", lambda found: str(int(found[0][:9]) + rng.randint(1, 9)), text)


def changes(pool: Sequence[str]) -> dict[str, Change]:
    """The ways in which a prompt gets into a training set; none where a row says the prompt without change."""
    return {
        "as it is": lambda text, rng: text,
        "case and punctuation": case_and_marks,
        "inside a longer turn": lambda text, rng: f"{rng.choice(pool)}\n{text}\n{rng.choice(pool)}",
        "inside a document": lambda text, rng: text,
        "the first half": first_half,
        "a word in ten missing": left_out,
        **{f"{share:.0%} of the words swapped": swapped(share, pool) for share in (0.05, 0.1, 0.2, 0.3)},
        "synonyms by rule": synonyms,
        "sentences reversed": reordered,
        "other numbers": other_numbers,
    }


def planted(prompts: Sequence[str], hosts: Sequence[Demonstration], pages: Sequence[str]) -> dict[str, list[Record]]:
    """Way -> training rows with one evaluation prompt each; those that a change leaves as they are have no row."""
    found: dict[str, list[Record]] = {}
    pool = [asked for host in hosts if len(asked := prompt_text(host)) > 20]
    for name, change in changes(pool).items():
        rng, same = random.Random(name), name in ("as it is", "inside a document")
        rows: list[Record] = []
        for prompt in prompts:
            text = change(prompt, rng)
            if not same and units(text) == units(prompt) and name != "case and punctuation":
                continue
            if name == "inside a document":
                page = rng.choice(pages)
                rows.append(Document(f"{page[: len(page) // 2]}\n{text}\n{page[len(page) // 2 :]}"))
            else:
                reply = rng.choice(hosts).messages[-1]
                rows.append(Demonstration((Message("user", text), reply)))
        found[name] = rows
    return found


def shown(count: int, total: int) -> str:
    """A share with its 95 % interval."""
    low, high = wilson(count, total)
    return f"{count / total:.1%} ({low:.1%}–{high:.1%})"


def dropped(step: Decontamination, records: Sequence[Record]) -> list[tuple[Record, str]]:
    """What a detector drops, and why."""
    found = ((record, step.check(record)) for record in records)
    return [(record, f"{finding.reason}: {finding.excerpt}") for record, finding in found if finding is not None]


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", type=Path)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="plant one prompt in N")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N untouched rows that are dropped")
    args = parser.parse_args(argv)
    prompts = [one for file in EVALUATION.values() for one in read(args.data / file, Prompt).records]
    training = {name: read(args.data / file, Demonstration).records for name, file in TRAINING.items()}
    hosts = [one for records in training.values() for one in records]
    pages = [one.text for file in DOCUMENTS.values() for one in read(args.data / file, Document).records]
    parts = [page[at : at + PART] for page in pages for at in range(0, len(page), PART)]
    steps = {name: Decontamination(prompts, **options) for name, options in DETECTORS.items()}

    plants = planted([prompt_text(one) for one in prompts[:: args.every]], hosts, parts)
    print(f"{len(prompts)} evaluation prompts\nshare of the planted rows that is found (95 % interval)")
    cells = {
        way: [shown(len(dropped(step, rows)), len(rows)) for step in steps.values()] for way, rows in plants.items()
    }
    print(table(("planted", "rows", *steps), [(way, len(plants[way]), *cells[way]) for way in plants]))

    untouched: dict[str, list[Record]] = {**training, " and ".join(DOCUMENTS): [Document(part) for part in parts]}
    alarms = {way: {name: dropped(step, rows) for name, step in steps.items()} for way, rows in untouched.items()}
    total = sum(map(len, untouched.values()))
    counts = [(way, len(untouched[way]), *(len(found) for found in alarms[way].values())) for way in untouched]
    counts.append(("all", total, *(shown(sum(row[at] for row in counts), total) for at in range(2, len(steps) + 2))))
    print("\nuntouched rows that are dropped")
    print(table(("untouched", "rows", *steps), counts))
    every = [(way, record, why) for way in untouched for record, why in alarms[way]["default"]]
    for way, record, why in random.Random(0).sample(every, min(args.show, len(every))):
        print(f"\n{way}: {why[:400]}\n    {prompt_text(record)[:400]!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
