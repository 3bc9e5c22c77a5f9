"""A reward trainer of your own: the margin loss of Llama 2 (Touvron et al. 2023, section 3.2.2).

    python examples/reward_with_margin.py

Pairs that people found clearly different should get clearly different scores:
-log sigmoid(chosen - rejected - margin). `Comparison.grade` says how clear a pair is; a collator carries margins along.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainingArguments

from align import RewardTrainer
from align.data.collate import PairCollator
from align.data.encode import encode_comparisons
from align.models.load import new_causal_lm
from align.models.tokenizer import train_tokenizer
from align.recipe.model_section import Architecture
from data_formats.records import Comparison, Message
from reward.losses import pairwise_logistic
from reward.model import RewardModel


class MarginCollator(PairCollator):
    """Adds `margins_B` to the batch."""

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        return {**super().__call__(rows), "margins_B": torch.tensor([row["margin"] for row in rows])}


class MarginRewardTrainer(RewardTrainer):
    """Pairwise logistic loss with the margin taken off the difference first."""

    def compute_pair_losses(self, chosen_B: Tensor, rejected_B: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Loss of every pair, (B,)."""
        return pairwise_logistic(chosen_B - inputs["margins_B"], rejected_B)


def comparisons() -> list[Comparison]:
    """Kind against rude, clearly, and long against short, barely; one rater in four always thinks the opposite."""
    prompt, found = (Message("user", "Good morning."),), []
    for kind, better, worse, grade in (("manners", "Welcome!", "Go away.", 3.0), ("length", "Hi, hi.", "Hi.", 0.0)):
        found += 12 * [Comparison(prompt, better, worse, grade, tags=(kind,))]
        found += 4 * [Comparison(prompt, worse, better, grade, tags=(kind, "opposite"))]
    return found


def main(output_dir: str | Path = "runs/examples/reward_with_margin", margins: bool = True) -> dict[str, float]:
    """Train, and return by how much the better reply of each kind of pair is ahead."""
    pairs = comparisons()
    tokenizer = train_tokenizer([pair.chosen for pair in pairs], vocab_size=320)
    rows, _ = encode_comparisons(tokenizer, pairs, max_length=64, on_overlong="error")
    rows = [row | {"margin": float(pair.grade) * margins} for row, pair in zip(rows, pairs, strict=True)]
    shape = Architecture(hidden_size=32, intermediate_size=64, num_hidden_layers=1, max_position_embeddings=64)
    torch.manual_seed(0)
    model = RewardModel(new_causal_lm(shape, tokenizer, seed=0).model)
    arguments = TrainingArguments(
        str(output_dir),
        per_device_train_batch_size=32,
        max_steps=60,
        learning_rate=3e-3,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    data = {"train_dataset": rows, "data_collator": MarginCollator(tokenizer.pad_token_id)}
    trainer = MarginRewardTrainer(model, arguments, processing_class=tokenizer, **data)
    trainer.train()
    trainer.save_model(str(Path(output_dir) / "model"))
    scores = zip(pairs, trainer.predict(rows).predictions.tolist(), strict=True)
    return {pair.tags[0]: chosen - rejected for pair, (chosen, rejected, _) in scores if len(pair.tags) == 1}


if __name__ == "__main__":
    print(main())
