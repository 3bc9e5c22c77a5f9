"""Replies a second of `ModelReward`: prompts shared and replies apart, at 2 and 8 replies a prompt.

    python examples/benchmark_reward_scoring.py [--replies 128] [--length 256] [--rounds 5] [--size small]

Prompt to reply is 4:1, 1:1 and 1:4; float32, sdpa, one thread, a Qwen2 of random weights. Every round runs each way
once, in turn; speeds and ratios are medians over the rounds. `wall` is what a clock shows, `cpu` counts the time that
this process computed, which other jobs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

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


def make_tokenizer() -> Any:
    """A tokenizer of 1024 words, since trl asks for one; the rows are ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({f"w{index}": index for index in range(1024)}, unk_token="w1"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w2", unk_token="w1")


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


def score_all(count: int, length: int, size: str, rounds: int) -> dict[str, dict[str, float]]:
    """Print and return `scoring` by ratio and replies a prompt."""
    table = {}
    for name, share in RATIOS.items():
        for replies in (2, 8):
            key = f"scoring {name}, {replies} replies"
            table[key] = scoring(count, replies, length, share, size, rounds)
            show(key, table[key])
    return table


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """`score_all` as the options say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replies", type=int, default=128)
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt with one reply")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, default="small", help="width and layers of the model")
    options = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    return score_all(options.replies, options.length, options.size, options.rounds)


if __name__ == "__main__":
    main()
