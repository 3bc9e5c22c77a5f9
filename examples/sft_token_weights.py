"""An SFT trainer of your own: every token's loss has a weight that comes with the data.

    python examples/sft_token_weights.py

Here an expert's answer weighs 6 and each of three passers-by weighs 1, so the model should say what the expert says
with probability 6 / 9; with equal weights it would be 1 / 4. Weights may differ within a row too: final answers over
reasoning, say. `token_weights` is what `SFTTrainer.compute_loss` asks; a collator carries the rows' weights to it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainingArguments

from align import SFTTrainer
from align.data.collate import CausalCollator
from align.data.encode import encode_demonstrations, encode_prompts, encode_reply
from align.models.load import new_causal_lm
from align.models.tokenizer import train_tokenizer
from align.recipe.model_section import Architecture
from data_formats.records import Demonstration, Message

QUESTION = Message("user", "Is tea good for you?")
ANSWERS = [("Yes.", 6.0), ("No.", 1.0), ("No.", 1.0), ("No.", 1.0)]


class WeightedCollator(CausalCollator):
    """Adds `weights`, (B, T), 0 in the padding."""

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        weights = [torch.tensor(row["weights"]) for row in rows]
        return {**super().__call__(rows), "weights": torch.nn.utils.rnn.pad_sequence(weights, batch_first=True)}


class WeightedSFTTrainer(SFTTrainer):
    """Multiplies the loss of each token by its weight; the sum is divided by the number of tokens, as ever."""

    def token_weights(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """weights_BT times those of the data, and the units."""
        weights_BT, units = super().token_weights(inputs)
        return weights_BT * inputs["weights"], units


def main(output_dir: str | Path = "runs/examples/sft_token_weights", weighted: bool = True) -> dict[str, float]:
    """Train, and return the probabilities of the first token of both answers."""
    tokenizer = train_tokenizer([QUESTION.content, *(answer for answer, _ in ANSWERS)], vocab_size=280)
    demos = [Demonstration((QUESTION, Message("assistant", answer))) for answer, _ in ANSWERS]
    rows, _ = encode_demonstrations(tokenizer, demos, max_length=64, on_overlong="error")
    for row, (_, weight) in zip(rows, ANSWERS, strict=True):
        row["weights"] = [weight if weighted else 1.0] * len(row["input_ids"])
    shape = Architecture(hidden_size=32, intermediate_size=64, num_hidden_layers=1, max_position_embeddings=64)
    model = new_causal_lm(shape, tokenizer, seed=0)
    arguments = TrainingArguments(
        str(output_dir),
        per_device_train_batch_size=4,
        max_steps=80,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    collator = WeightedCollator(tokenizer.pad_token_id)
    trainer = WeightedSFTTrainer(
        model, arguments, train_dataset=rows, processing_class=tokenizer, data_collator=collator
    )
    trainer.train()
    trainer.save_model(str(Path(output_dir) / "model"))
    (prompt,) = encode_prompts(tokenizer, [[QUESTION]])
    with torch.no_grad():
        chances_V = model.eval()(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    return {answer: float(chances_V[encode_reply(tokenizer, answer)[0]]) for answer in ("Yes.", "No.")}


if __name__ == "__main__":
    print(main())
