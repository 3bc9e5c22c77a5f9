"""Reward models: pairs trained a second beside `trl.RewardTrainer`, and replies scored a second beside plain passes.

    python examples/benchmarks/reward_models.py [--cases 4:1 1:1 1:4 score-2 score-8] [--rounds 5] [--out FOLDER]

Training: the same pairs of token ids, steps of 8 pairs, a turn is an epoch. Prompt to reply is 4:1, 1:1 and 1:4;
sharing the prompt of a pair alone allows (2 prompt + 2 reply) / (prompt + 2 reply) times the speed: 1.67, 1.33, 1.11.
Scoring, at 1:1 with two and with eight replies a prompt: `ModelReward` beside padded batches of transformers'
classifier, sorted by length. Float32; a Qwen2 of random weights, the same shape on both sides.

The file is not called `reward.py`, which would hide the package of that name from a program in this folder.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import measuring
import small_models
from measuring import Case, Turns

SIZES = {"vocab": 1024, "width": 256, "layers": 6, "groups": 64, "replies": 2, "length": 256, "rows": 8}
TRAINING = {"4:1": 0.8, "1:1": 0.5, "1:4": 0.2}  # the prompt's share of a sequence
CASES: dict[str, Case] = {
    name: {**SIZES, "share": share, "words": "64 pairs, 256 tokens", "scores": False, "sides": ["align", "trl"]}
    for name, share in TRAINING.items()
}
for number in (2, 8):
    CASES[f"score-{number}"] = SIZES | {
        "share": 0.5,
        "groups": 128 // number,
        "replies": number,
        "words": f"128 replies, {number} a prompt",
        "scores": True,
        "sides": ["align", "plain"],
    }
TINY = {"vocab": 64, "width": 32, "layers": 1, "groups": 4, "length": 16, "rows": 2}


def make_groups(case: Case) -> list[dict[str, Any]]:
    """Groups of a prompt and its replies as token ids, `length` tokens together, give or take a tenth; of replies the
    first is better than the second."""
    rng, length, share = random.Random(0), case["length"], case["share"]

    def ids(mean: float) -> list[int]:
        return [rng.randrange(7, case["vocab"]) for _ in range(max(1, round(mean * rng.uniform(0.9, 1.1))))]

    return [
        {
            "prompt_ids": ids(length * share),
            "reply_ids": [ids(length * (1 - share)) for _ in range(case["replies"])],
            "pairs": [(0, 1, 0.0, 1.0)],
        }
        for _ in range(case["groups"])
    ]


def arguments(case: Case) -> dict[str, Any]:
    """What the arguments of both trainers have in common."""
    return small_models.trainer_arguments(case["rows"], 1e-5)


def align(case: Case, turns: Turns) -> None:
    """Ours, prompts shared."""
    (_score if case["scores"] else _train)(case, turns)


def _train(case: Case, turns: Turns) -> None:
    from transformers import TrainingArguments

    from align.trainers.reward_groups import GroupOptions, GroupRewardTrainer
    from reward.model import RewardModel

    GroupRewardTrainer(
        RewardModel(small_models.make("Qwen2Model", case)),
        TrainingArguments(**arguments(case)),
        options=GroupOptions(share_prompts=True),
        train_dataset=make_groups(case),
        processing_class=small_models.tokenizer(case["vocab"]),
        callbacks=[turns.callback(ends="on_epoch_end", items=lambda: case["groups"])],
    ).train()


def _score(case: Case, turns: Turns) -> None:
    """By `ModelReward`, which scores replies for PPO, for best-of-n and for labels."""
    from reward.model import RewardModel
    from reward.protocol import Sample
    from reward.sources import ModelReward

    model = RewardModel(small_models.make("Qwen2Model", case)).requires_grad_(False).eval()
    reward = ModelReward(model, small_models.tokenizer(case["vocab"]), 16)
    samples = [
        Sample((), "", prompt_ids=tuple(group["prompt_ids"]), completion_ids=tuple(reply))
        for group in make_groups(case)
        for reply in group["reply_ids"]
    ]
    turns.repeat(lambda: len(reward.score(samples)))


def trl(case: Case, turns: Turns) -> None:
    """`trl.RewardTrainer` on the same ids, the version that align is installed with."""
    from datasets import Dataset, disable_progress_bars
    from trl import RewardConfig, RewardTrainer

    disable_progress_bars()
    sides = {"chosen_ids": 0, "rejected_ids": 1}
    rows = {
        name: [group["prompt_ids"] + group["reply_ids"][at] for group in make_groups(case)]
        for name, at in sides.items()
    }
    RewardTrainer(
        small_models.make("Qwen2ForSequenceClassification", case, num_labels=1),
        RewardConfig(**arguments(case), max_length=None),
        train_dataset=Dataset.from_dict(rows),
        processing_class=small_models.tokenizer(case["vocab"]),
        callbacks=[turns.callback(ends="on_epoch_end", items=lambda: case["groups"])],
    ).train()


def plain(case: Case, turns: Turns) -> None:
    """Padded batches of 16 rows of like length."""
    import torch

    model = small_models.make("Qwen2ForSequenceClassification", case, num_labels=1).eval()
    rows = [group["prompt_ids"] + reply + [2] for group in make_groups(case) for reply in group["reply_ids"]]
    rows = [torch.tensor(row) for row in sorted(rows, key=len)]

    @torch.no_grad()
    def score() -> int:
        for start in range(0, len(rows), 16):
            ids_BT = torch.nn.utils.rnn.pad_sequence(rows[start : start + 16], batch_first=True)
            model(input_ids=ids_BT, attention_mask=(ids_BT != 0).long(), use_cache=False)
        return len(rows)

    turns.repeat(score)


SIDES = {"align": align, "trl": trl, "plain": plain}


def main(argv: list[str] | None = None) -> None:
    """As the options say."""
    measuring.program(__file__, __doc__, SIDES, CASES, unit="pairs or replies", tiny=TINY, argv=argv)


if __name__ == "__main__":
    main(sys.argv[1:])
