"""Pairs a second of reward training: prompts shared, replies apart, and `trl.RewardTrainer`, on the same pairs.

    python examples/benchmark_reward.py [--pairs 64] [--length 256] [--rounds 3] [--out FILE]

One optimizer step a batch of 8 pairs, AdamW, float32, sdpa, one thread, a small Qwen2 of random weights; a round trains
each way once, in turn, and the median over the rounds counts. Prompt to reply is 4:1, 1:1 and 1:4. Sharing alone allows
(2 prompt + 2 reply) / (prompt + 2 reply): 1.67, 1.33 and 1.11.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 8
RATIOS = {"4:1": 0.8, "1:1": 0.5, "1:4": 0.2}  # prompt's share of a sequence


def make_pairs(count: int, length: int, prompt_share: float) -> list[dict[str, Any]]:
    """Groups of one pair whose sequences are `length` tokens, give or take a tenth."""
    import random

    rng = random.Random(0)

    def ids(mean: float) -> list[int]:
        return [rng.randrange(1000) for _ in range(max(1, round(mean * rng.uniform(0.9, 1.1))))]

    return [
        {
            "prompt_ids": ids(length * prompt_share),
            "reply_ids": [ids(length * (1 - prompt_share)) for _ in range(2)],
            "pairs": [(0, 1, 0.0, 1.0)],
            "weight": 1.0,
        }
        for _ in range(count)
    ]


def shape() -> Any:
    """A Qwen2 of 6 layers of width 256."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
        num_labels=1,
    )


def seconds_ours(rows: list[dict], folder: str, tokenizer: Any, *, share: bool) -> tuple[float, float]:
    """Seconds of `GroupRewardTrainer.train`."""
    import torch
    from transformers import Qwen2Model, TrainingArguments

    from align.trainers.reward_groups import GroupOptions, GroupRewardTrainer
    from reward.model import RewardModel

    torch.manual_seed(0)
    args = TrainingArguments(**common(folder))
    trainer = GroupRewardTrainer(
        RewardModel(Qwen2Model(shape())),
        args,
        options=GroupOptions(share_prompts=share),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    return timed(trainer.train)


def seconds_trl(rows: list[dict], folder: str, tokenizer: Any) -> tuple[float, float]:
    """Seconds of `trl.RewardTrainer.train` on the same ids."""
    import torch
    from datasets import Dataset
    from transformers import Qwen2ForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(0)
    sides = {"chosen_ids": 0, "rejected_ids": 1}
    data = {name: [row["prompt_ids"] + row["reply_ids"][at] for row in rows] for name, at in sides.items()}
    args = RewardConfig(**common(folder), max_length=None, gradient_checkpointing=False, bf16=False)
    trainer = RewardTrainer(
        Qwen2ForSequenceClassification(shape()), args, train_dataset=Dataset.from_dict(data), processing_class=tokenizer
    )
    return timed(trainer.train)


def common(folder: str) -> dict[str, Any]:
    """What all ways have in common."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": 1e-5,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """(wall, CPU) seconds of a call; CPU is user and system time of this process, which other jobs disturb less."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used


def compare(ways: dict[str, Callable[[], tuple[float, float]]], items: int, rounds: int) -> dict[str, float]:
    """Items a second of each way, by wall and by CPU time, and how many times faster the first way is than the others.

    All are medians over rounds in which every way runs once, in turn; a ratio is of the same round.
    """
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            found[way].append(run())
    table, first = {}, next(iter(ways))
    for at, clock in enumerate(("wall", "cpu")):
        for way, seconds in found.items():
            table[f"{way} {clock}"] = items / statistics.median(each[at] for each in seconds)
        for way in [*ways][1:]:
            ratios = [other[at] / own[at] for own, other in zip(found[first], found[way], strict=True)]
            table[f"{first}/{way} {clock}"] = statistics.median(ratios)
    return table


def make_tokenizer() -> Any:
    """A tokenizer of 1024 words, since trl asks for one; the rows are ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({f"w{index}": index for index in range(1024)}, unk_token="w1"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w2", unk_token="w1")


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Print and return pairs a second by ratio and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt with one reply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a file for the figures as JSON")
    options = parser.parse_args(argv)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    import torch

    torch.set_num_threads(1)
    tokenizer, table = make_tokenizer(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, share in RATIOS.items():
            rows = make_pairs(options.pairs, options.length, share)
            ways = {
                "shared": lambda rows=rows: seconds_ours(rows, folder, tokenizer, share=True),
                "apart": lambda rows=rows: seconds_ours(rows, folder, tokenizer, share=False),
                "trl": lambda rows=rows: seconds_trl(rows, folder, tokenizer),
            }
            table[name] = compare(ways, options.pairs, options.rounds)
            print(name, {key: round(value, 2) for key, value in table[name].items()}, flush=True)
    if options.out:
        options.out.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return table


if __name__ == "__main__":
    main()
