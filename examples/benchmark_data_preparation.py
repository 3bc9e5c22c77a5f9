"""Speed of data preparation beside `datasets.map`, row by row through the tokenizer's chat template: ids and loss mask.

    python examples/benchmark_data_preparation.py [--conversations N]

Short chats, all different, mostly English and some Chinese; one tokenizer, one process and one thread for both. The
template has `{% generation %}` marks, from which transformers makes the mask that TRL trains with. After a comparison
of ids and masks they take turns, three times; each gets the chats as it keeps them (records, a `Dataset` in memory).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

ROUNDS, MAX_LENGTH, SAMPLE, VOCABULARY = 3, 1024, 500, 8000
TEMPLATE = (  # ChatML, with the marks that tell transformers where the loss is
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
)


def chats(count: int, seed: int = 0) -> list[list[dict[str, str]]]:
    """Chats of one exchange of about 20 words a turn, drawn as in natural text (Zipf), one chat in ten in Chinese."""
    rng = random.Random(seed)
    english = ["".join(rng.choices("etaoinshrdlucmfwyp", k=rng.randint(2, 9))) for _ in range(20_000)]
    chinese = ["".join(chr(rng.randint(0x4E00, 0x9FA0)) for _ in range(rng.randint(1, 3))) for _ in range(5_000)]
    zipf = {len(words): list(accumulate(1 / rank for rank in range(1, len(words) + 1))) for words in (english, chinese)}

    def sentence(words: list[str], space: str, end: str) -> str:
        return space.join(rng.choices(words, cum_weights=zipf[len(words)], k=rng.randint(15, 25))) + end

    languages = [(chinese, "", "。")] + 9 * [(english, " ", ".")]
    drawn = [languages[number % len(languages)] for number in range(count)]
    return [[{"role": role, "content": sentence(*one)} for role in ("user", "assistant")] for one in drawn]


def contest(count: int) -> tuple[Any, Any]:
    """Two functions that prepare all chats, ours and the other, and give rows with ids and labels for a sample."""
    from datasets import Dataset, disable_progress_bars

    from align.data.encode import encode_demonstrations
    from align.models.tokenizer import train_tokenizer
    from data_formats.records import Demonstration, Message

    disable_progress_bars()
    data = chats(count)
    tokenizer = train_tokenizer((turn["content"] for chat in data[:10_000] for turn in chat), vocab_size=VOCABULARY)
    tokenizer.chat_template = TEMPLATE
    demos = [Demonstration(tuple(Message(**turn) for turn in chat)) for chat in data]
    dataset = Dataset.from_dict({"messages": data})

    def by_template(row: dict[str, Any]) -> dict[str, list[int]]:
        made = tokenizer.apply_chat_template(row["messages"], return_assistant_tokens_mask=True, return_dict=True)
        return {"input_ids": made["input_ids"], "assistant_masks": made["assistant_masks"]}

    def align_rows() -> list[dict[str, Any]]:
        return encode_demonstrations(tokenizer, demos, MAX_LENGTH, "error")[0]

    def map_rows() -> Dataset:
        return dataset.map(by_template, remove_columns=["messages"], keep_in_memory=True, load_from_cache_file=False)

    return align_rows, map_rows


def seconds(prepare: Any) -> float:
    """How long one preparation takes."""
    gc.collect()
    began = time.perf_counter()
    prepare()
    return time.perf_counter() - began


def main(folder: str | Path = "runs/examples/benchmark_data_preparation", count: int = 100_000) -> dict[str, Any]:
    """Compare, measure, print, and return the figures; they are also written to `figures.json` in `folder`."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": "1"}  # before tokenizers and datasets are imported
    Path(folder).mkdir(parents=True, exist_ok=True)
    align_rows, map_rows = contest(count)
    ours, theirs = align_rows(), map_rows()  # a warm-up as well
    sample = random.Random(1).sample(range(count), min(SAMPLE, count))
    same = sum(_same(ours[at], theirs[at]) for at in sample)
    print(f"{same} of {len(sample)} sampled chats have the same token ids and the same loss mask in both")
    tokens = sum(len(row["input_ids"]) for row in ours)
    del ours, theirs
    contestants = {"align": align_rows, "datasets_map": map_rows}
    speeds = [{name: round(count / seconds(run), 1) for name, run in contestants.items()} for _ in range(ROUNDS)]
    print("chats a second:", *speeds, sep="\n  ")
    figures: dict[str, Any] = {name: statistics.median(speed[name] for speed in speeds) for name in contestants}
    ratio = statistics.median(speed["align"] / speed["datasets_map"] for speed in speeds)  # of neighbours in time
    figures |= {"ratio": round(ratio, 2), "same_rows": same == len(sample)}
    figures |= {"conversations": count, "tokens_per_conversation": round(tokens / count, 1)}
    (Path(folder) / "figures.json").write_text(json.dumps(figures) + "\n", encoding="utf-8")
    print(json.dumps(figures))
    return figures


def _same(ours: dict[str, list[int]], theirs: dict[str, list[int]]) -> bool:
    mask = [int(label != -100) for label in ours["labels"]]
    return ours["input_ids"] == theirs["input_ids"] and mask == theirs["assistant_masks"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, default=100_000)
    main(count=parser.parse_args().conversations)
