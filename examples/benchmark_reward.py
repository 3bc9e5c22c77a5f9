"""Reward models with prompts shared: pairs trained and replies scored a second, beside `trl.RewardTrainer`.

    python examples/benchmark_reward.py [--pairs 64] [--length 256] [--rounds 5] [--size small] [--out FILE]

Training: the same pairs three ways (prompts shared, replies apart, trl), one optimizer step a batch of 8 pairs, AdamW,
float32, sdpa, one thread, a Qwen2 of random weights. Prompt to reply is 4:1, 1:1 and 1:4; sharing alone allows
(2 prompt + 2 reply) / (prompt + 2 reply): 1.67, 1.33 and 1.11, and the flat row of `reward.flat` has no padding beside.
`gradient difference` is the largest difference of a gradient between shared and apart over that tensor's largest entry.
Scoring: `ModelReward` on 2 and on 8 replies a prompt, shared and apart.

Every round runs each way once, in turn; speeds and ratios are medians over the rounds. `wall` is what a clock shows,
`cpu` counts the time that this process computed, which other jobs on the machine disturb less.
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
WAYS_OF_SCORING = {"shared": None, "apart": False}  # `share_prompts`
SIZES = {"small": (256, 6), "medium": (512, 12)}  # width, layers
RATIOS = {"4:1": 0.8, "1:1": 0.5, "1:4": 0.2}  # prompt's share of a sequence


def make_pairs(count: int, length: int, prompt_share: float, replies: int = 2) -> list[dict[str, Any]]:
    """Groups of one pair (the first two replies) whose sequences are `length` tokens, give or take a tenth."""
    import random

    rng = random.Random(0)

    def ids(mean: float) -> list[int]:
        return [rng.randrange(1000) for _ in range(max(1, round(mean * rng.uniform(0.9, 1.1))))]

    return [
        {
            "prompt_ids": ids(length * prompt_share),
            "reply_ids": [ids(length * (1 - prompt_share)) for _ in range(replies)],
            "pairs": [(0, 1, 0.0, 1.0)],
            "weight": 1.0,
        }
        for _ in range(count)
    ]


def shape(size: str) -> Any:
    """A Qwen2 of one of `SIZES`."""
    from transformers import Qwen2Config

    width, layers = SIZES[size]
    return Qwen2Config(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        max_position_embeddings=4096,
        pad_token_id=0,
        num_labels=1,
    )


def seconds_ours(rows: list[dict], folder: str, tokenizer: Any, size: str, *, share: bool) -> tuple[float, float]:
    """Seconds of `GroupRewardTrainer.train`."""
    import torch
    from transformers import Qwen2Model, TrainingArguments

    from align.trainers.reward_groups import GroupOptions, GroupRewardTrainer
    from reward.model import RewardModel

    torch.manual_seed(0)
    args = TrainingArguments(**common(folder))
    trainer = GroupRewardTrainer(
        RewardModel(Qwen2Model(shape(size))),
        args,
        options=GroupOptions(share_prompts=share),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    return timed(trainer.train)


def seconds_trl(rows: list[dict], folder: str, tokenizer: Any, size: str) -> tuple[float, float]:
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
        Qwen2ForSequenceClassification(shape(size)),
        args,
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
    )
    return timed(trainer.train)


def gradient_difference(rows: list[dict], size: str) -> float:
    """Largest difference of a gradient between shared and apart on one batch, relative to its tensor's largest."""
    import torch
    from transformers import Qwen2Model

    from align.trainers.reward_groups import GroupCollator, GroupOptions
    from reward.losses import pairwise_logistic
    from reward.model import RewardModel

    torch.manual_seed(0)
    model, found = RewardModel(Qwen2Model(shape(size))), []
    names = ("input_ids", "attention_mask", "position_ids", "members", "rows", "parts")
    for share in (True, False):
        batch = GroupCollator(0, GroupOptions(share_prompts=share), flat=share)(rows[:BATCH])
        scores_N = model(**{name: batch[name] for name in names if name in batch})
        model.zero_grad()
        pairwise_logistic(scores_N[batch["better"]], scores_N[batch["worse"]]).mean().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    pairs = zip(*found, strict=True)
    return max(float((shared - apart).abs().max() / apart.abs().max()) for shared, apart in pairs)


def scoring(count: int, replies: int, length: int, share: float, size: str, rounds: int) -> dict[str, float]:
    """Replies a second of `ModelReward`, shared and apart, and the largest difference of a score."""
    import torch
    from transformers import Qwen2Model

    from reward.model import RewardModel
    from reward.protocol import Sample
    from reward.sources import ModelReward

    torch.manual_seed(0)
    model, tokenizer = RewardModel(Qwen2Model(shape(size))), make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    model.backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows = make_pairs(count // replies, length, share, replies)
    samples = [
        Sample((), "", prompt_ids=tuple(row["prompt_ids"]), completion_ids=tuple(reply))
        for row in rows
        for reply in row["reply_ids"]
    ]
    rewards = {name: ModelReward(model, tokenizer, 16, share_prompts=on) for name, on in WAYS_OF_SCORING.items()}
    scores = [reward.score(samples) for reward in rewards.values()]
    ways = {name: lambda reward=reward: timed(lambda: reward.score(samples)) for name, reward in rewards.items()}
    largest = max(abs(a - b) for a, b in zip(*scores, strict=True))
    return compare(ways, len(samples), rounds) | {"score difference": largest}


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


def show(name: str, figures: dict[str, float]) -> None:
    """One line."""
    print(f"{name}:", ", ".join(f"{key} {value:.3g}" for key, value in figures.items()), flush=True)


def make_tokenizer() -> Any:
    """A tokenizer of 1024 words, since trl asks for one; the rows are ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({f"w{index}": index for index in range(1024)}, unk_token="w1"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w2", unk_token="w1")


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Print and return pairs and replies a second by ratio and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt with one reply")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, default="small", help="width and layers of the model")
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
                "shared": lambda rows=rows: seconds_ours(rows, folder, tokenizer, options.size, share=True),
                "apart": lambda rows=rows: seconds_ours(rows, folder, tokenizer, options.size, share=False),
                "trl": lambda rows=rows: seconds_trl(rows, folder, tokenizer, options.size),
            }
            table[name] = compare(ways, options.pairs, options.rounds)
            table[name]["gradient difference"] = gradient_difference(rows, options.size)
            show(f"training {name}", table[name])
    for name, share in RATIOS.items():
        for replies in (2, 8):
            key = f"scoring {name}, {replies} replies"
            table[key] = scoring(options.pairs * 2, replies, options.length, share, options.size, options.rounds)
            show(key, table[key])
    if options.out:
        options.out.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return table


if __name__ == "__main__":
    main()
