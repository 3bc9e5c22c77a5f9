"""Rows a second of data preparation, stage by stage, beside the way of TRL: `datasets` and the chat template.

    python examples/benchmarks/data.py [--cases read encode pack] [--chats 20000] [--rounds 5] [--out FOLDER]

`read`: a JSON Lines file of chats into records (ours checks roles, texts and formats; theirs is an Arrow table).
`encode`: records into ids and loss mask: ours, and `Dataset.map` row by row through `apply_chat_template` with
`{% generation %}` marks, as `trl.SFTTrainer` prepares its data, its `labels` included. `pack`: best-fit rows of 1,024
tokens, and `trl.pack_dataset`. One process and one thread of tokenizers; a test holds that ids and masks are the same.
Chats have one exchange of 15 to 25 words a turn, drawn as in natural text (Zipf), one in ten in Chinese; a BPE
tokenizer of 8,000 pieces.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from itertools import accumulate
from pathlib import Path
from typing import Any

import measuring
import small_models
from measuring import Case, Turns

CASES: dict[str, Case] = {
    "read": {"words": "a JSONL file into records"},
    "encode": {"words": "records into ids and loss mask"},
    "pack": {"words": "rows into packed rows"},
}
TINY = {"chats": 200, "pieces": 400}
MAX_LENGTH = 1024


def chats(count: int) -> list[list[dict[str, str]]]:
    """All different, and the same in every process."""
    rng = random.Random(0)
    english = ["".join(rng.choices("etaoinshrdlucmfwyp", k=rng.randint(2, 9))) for _ in range(20_000)]
    chinese = ["".join(chr(rng.randint(0x4E00, 0x9FA0)) for _ in range(rng.randint(1, 3))) for _ in range(5_000)]
    zipf = {len(words): list(accumulate(1 / rank for rank in range(1, len(words) + 1))) for words in (english, chinese)}

    def sentence(words: list[str], space: str, end: str) -> str:
        return space.join(rng.choices(words, cum_weights=zipf[len(words)], k=rng.randint(15, 25))) + end

    languages = [(chinese, "", "。")] + 9 * [(english, " ", ".")]
    drawn = [languages[number % len(languages)] for number in range(count)]
    return [[{"role": role, "content": sentence(*one)} for role in ("user", "assistant")] for one in drawn]


def make_tokenizer(case: Case) -> Any:
    """Learnt from the chats; it has the template's marks."""
    from align.models.tokenizer import train_tokenizer

    some = chats(min(2_000, case["chats"]))
    made = train_tokenizer((turn["content"] for chat in some for turn in chat), vocab_size=case["pieces"])
    made.chat_template = small_models.TEMPLATE
    return made


def write_file(case: Case) -> Path:
    """The chats as JSON Lines."""
    path = Path(tempfile.mkdtemp()) / "chats.jsonl"
    lines = (json.dumps({"messages": chat}, ensure_ascii=False) + "\n" for chat in chats(case["chats"]))
    path.write_text("".join(lines), encoding="utf-8")
    return path


def align(case: Case, turns: Turns) -> None:
    """What a stage does with its data."""
    from align.data.encode import encode_demonstrations
    from align.data.packing import PackedRows
    from data_formats.reading import read
    from data_formats.records import Demonstration

    path = write_file(case)
    if case["stage"] == "read":
        turns.repeat(lambda: len(read(path, Demonstration).records))
    records, names = read(path, Demonstration).records, make_tokenizer(case)

    def encode() -> list[Any]:
        return encode_demonstrations(names, records, MAX_LENGTH, "error")[0]

    if case["stage"] == "encode":
        turns.repeat(lambda: len(encode()))
    rows = encode()

    def pack() -> int:
        for _ in PackedRows(rows, MAX_LENGTH):  # each is joined when it is asked for
            pass
        return len(rows)

    turns.repeat(pack)


def trl(case: Case, turns: Turns) -> None:
    """What `trl.SFTTrainer` does, call by call."""
    from datasets import Dataset, disable_progress_bars
    from trl import pack_dataset

    disable_progress_bars()
    path, names = write_file(case), make_tokenizer(case)

    def load() -> Dataset:
        return Dataset.from_json(str(path), cache_dir=tempfile.mkdtemp(), keep_in_memory=True)

    if case["stage"] == "read":
        turns.repeat(lambda: len(load()))
    dataset, uncached = load(), {"keep_in_memory": True, "load_from_cache_file": False}

    def ids(row: dict[str, Any]) -> dict[str, list[int]]:
        made = names.apply_chat_template(row["messages"], return_assistant_tokens_mask=True, return_dict=True)
        return {"input_ids": made["input_ids"], "assistant_masks": made["assistant_masks"]}

    def labels(row: dict[str, Any]) -> dict[str, list[int]]:
        both = zip(row["input_ids"], row["assistant_masks"], strict=True)
        return {"labels": [token if counts else -100 for token, counts in both]}

    def encode() -> Dataset:
        return dataset.map(ids, **uncached).map(labels, remove_columns=["assistant_masks"], **uncached)

    if case["stage"] == "encode":
        turns.repeat(lambda: len(encode()))
    rows = encode().select_columns(["input_ids", "labels"])

    def pack() -> int:
        pack_dataset(rows, MAX_LENGTH, "bfd", dict(uncached))
        return len(rows)

    turns.repeat(pack)


SIDES = {"align": align, "trl": trl}


def options(parser: ArgumentParser) -> None:
    """Of this script."""
    parser.add_argument("--chats", type=int, default=20_000)


def settle(asked: Namespace, case: Case) -> Case:
    """The case as the options want it; what is tiny stays so."""
    sizes = {"chats": asked.chats, "pieces": 8_000} | case
    stage = next(name for name, one in CASES.items() if one["words"] == case["words"])
    return sizes | {"stage": stage, "words": f"{case['words']}, {sizes['chats']:,} chats"}


def main(argv: list[str] | None = None) -> None:
    """As the options say."""
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    measuring.program(
        __file__, __doc__, SIDES, CASES, unit="rows", tiny=TINY, options=options, settle=settle, argv=argv
    )


if __name__ == "__main__":
    main(sys.argv[1:])
