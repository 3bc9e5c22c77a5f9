"""Reward models with prompts shared: pairs trained and replies scored a second, beside `trl.RewardTrainer`.

    python examples/benchmark_reward.py [--pairs 64] [--length 256] [--rounds 5] [--size small] [--out FILE]

Training: the same pairs three ways (prompts shared, replies apart, trl), one optimizer step a batch of 8 pairs, AdamW,
float32, sdpa, one thread, a Qwen2 of random weights. Prompt to reply is 4:1, 1:1 and 1:4; sharing alone allows
(2 prompt + 2 reply) / (prompt + 2 reply): 1.67, 1.33 and 1.11, and the flat row of `reward.flat` has no padding beside.
`gradient difference` is the largest difference of a gradient between shared and apart over that tensor's largest entry.
Scoring: see `benchmark_reward_scoring.py`, which this runs at the end.

Every round runs each way once, in turn; speeds and ratios are medians over the rounds. `wall` is what a clock shows,
`cpu` counts the time that this process computed, which other jobs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmark_reward_scoring import RATIOS, SIZES, compare, make_pairs, make_tokenizer, score_all, shape, show, timed

BATCH = 8


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
    table |= score_all(options.pairs * 2, options.length, options.size, options.rounds)
    if options.out:
        options.out.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return table


if __name__ == "__main__":
    main()
