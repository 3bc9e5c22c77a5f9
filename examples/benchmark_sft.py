"""Throughput of SFT beside `trl.SFTTrainer`: one run, one machine, the same model, data, optimizer, batch and length.

    python examples/benchmark_sft.py [--conversations N] [--steps N] [--hidden-size N]

Both learn from the same multi-turn chats with loss on the replies, in steps of rows of like length. After a warm-up
they take turns, three times; counted are the tokens with loss of all steps over the time of these steps. TRL runs at
its best correct setting on a CPU: not packed (without flash attention its samples would see one another). Ours runs
packed too, which it can do anywhere, in steps of about as many tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

ROUNDS, BATCH, MAX_LENGTH = 3, 8, 1024
TEMPLATE = (  # ChatML, with the marks that tell TRL where the loss is
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
)


def chats(count: int, seed: int = 0) -> list[list[dict[str, str]]]:
    """Chats of 1 to 4 exchanges of made-up words, of very mixed length; words enough to fill a vocabulary of 2048."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 6))) for _ in range(1500)]
    turns = [("user", "assistant") * rng.randint(1, 4) for _ in range(count)]
    return [[{"role": r, "content": " ".join(rng.choices(words, k=rng.randint(1, 40)))} for r in t] for t in turns]


def stopwatch(kind: type) -> type:
    """The trainer, with the time at which its first step was counted and the tokens with loss of every step."""

    class Timed(kind):
        began, tokens = 0.0, 0

        def _get_num_items_in_batch(self, *args: Any) -> Any:
            self.began = self.began or time.perf_counter()
            items = super()._get_num_items_in_batch(*args)
            self.tokens += int(items)
            return items

        def speed(self) -> float:
            self.train()
            return self.tokens / (time.perf_counter() - self.began)

    return Timed


def trainers(count: int, width: int, folder: str | Path) -> tuple[Any, Any, list[dict]]:
    """Two functions that make a trainer for so many steps (0: one epoch), ours and TRL's, and our rows."""
    from datasets import Dataset, disable_progress_bars
    from transformers import TrainingArguments
    from trl import SFTConfig
    from trl import SFTTrainer as TRLTrainer

    from align import SFTTrainer
    from align.data.encode import encode_demonstrations
    from align.models.load import new_causal_lm
    from align.models.tokenizer import train_tokenizer
    from align.recipe.model_section import Architecture
    from data_formats.records import Demonstration, Message

    disable_progress_bars()
    data = chats(count)
    tokenizer = train_tokenizer([turn["content"] for chat in data for turn in chat], vocab_size=2048)
    demos = [Demonstration(tuple(Message(**turn) for turn in chat)) for chat in data]
    rows, _ = encode_demonstrations(tokenizer, demos, MAX_LENGTH, "error")
    tokenizer.chat_template = TEMPLATE
    shape = Architecture(hidden_size=width, intermediate_size=4 * width, max_position_embeddings=MAX_LENGTH)
    options = {"output_dir": str(folder), "per_device_train_batch_size": BATCH, "learning_rate": 1e-4, "use_cpu": True}
    options |= {"bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False, "disable_tqdm": True}
    options |= {"num_train_epochs": 1, "save_strategy": "no", "logging_strategy": "no", "report_to": "none"}
    theirs = {"train_sampling_strategy": "group_by_length", "assistant_only_loss": True, "max_length": MAX_LENGTH}

    def model() -> dict[str, Any]:
        return {"model": new_causal_lm(shape, tokenizer, seed=0), "processing_class": tokenizer}

    def align_trainer(steps: int, packed: bool = False) -> Any:
        args = TrainingArguments(**options, max_steps=steps or -1)
        if packed:
            mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
            args.per_device_train_batch_size = max(1, round(BATCH * mean / MAX_LENGTH))
        how = {"packing": True, "max_length": MAX_LENGTH} if packed else {"group_by_length": True}
        return stopwatch(SFTTrainer)(args=args, train_dataset=rows, **how, **model())

    def trl_trainer(steps: int) -> Any:
        args, dataset = SFTConfig(**options, **theirs, max_steps=steps or -1), Dataset.from_dict({"messages": data})
        return stopwatch(TRLTrainer)(args=args, train_dataset=dataset, **model())

    return align_trainer, trl_trainer, rows


def main(folder: str | Path = "runs/examples/benchmark_sft", count: int = 96, steps: int = 0, width: int = 256) -> dict:
    """Measure, print, and return the figures; without `steps` every run is one epoch, of the same rows for both."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}  # before transformers and trl are imported
    Path(folder).mkdir(parents=True, exist_ok=True)
    align_trainer, trl_trainer, rows = trainers(count, width, folder)
    prepared = trl_trainer(1).train_dataset
    keys = ("input_ids", "labels")
    same = sum(all(row[key] == other[key] for key in keys) for row, other in zip(rows, prepared, strict=True))
    print(f"{same} of {len(rows)} chats have the same token ids and the same loss mask in both")
    contest = {
        "align": align_trainer,
        "trl": trl_trainer,
        "align_packed": lambda steps: align_trainer(steps, packed=True),
    }
    for make in contest.values():
        make(2).speed()  # warm-up
    speeds = [{name: round(make(steps).speed(), 1) for name, make in contest.items()} for _ in range(ROUNDS)]
    print("tokens with loss a second:", *speeds, sep="\n  ")
    figures = {name: statistics.median(speed[name] for speed in speeds) for name in contest}
    for ratio, name in (("ratio", "align"), ("ratio_packed", "align_packed")):  # of neighbours: a busy machine drifts
        figures[ratio] = statistics.median(speed[name] / speed["trl"] for speed in speeds)
    figures = {name: round(value, 3) for name, value in figures.items()} | {"same_masks": same == len(rows)}
    print(json.dumps(figures | {"steps": steps or "one epoch", "conversations": count, "hidden_size": width}))
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, default in (("--conversations", 96), ("--steps", 0), ("--hidden-size", 256)):
        parser.add_argument(flag, type=int, default=default)
    asked = parser.parse_args()
    main(count=asked.conversations, steps=asked.steps, width=asked.hidden_size)
