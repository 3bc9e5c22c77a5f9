"""Training of preference and reward models on pairs (Qwen report section 3.2.1: PMP, then reward-model finetuning).

Loss: pairwise logistic, -log sigmoid(chosen - rejected), mean over the global pairs of the optimizer step. The report
names neither loss nor dropout; dropout is always off here, so that the same reply always has the same score.
A subclass changes the loss by overriding `compute_pair_losses` (margins, weights, groups).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from align.data.collate import PairCollator
from align.trainers import accepted, sharding
from align.trainers.supervised import SupervisedTrainer, disable_dropout
from reward.losses import pairwise_logistic


def pair_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy with its counts from per-pair (chosen score, rejected score, loss); equal scores are not correct."""
    chosen_N, rejected_N, losses_N = np.asarray(prediction.predictions, dtype=np.float64).T
    correct, pairs = int((chosen_N > rejected_N).sum()), len(chosen_N)
    return {
        "loss": float(losses_N.mean()),
        "accuracy": correct / pairs,
        "correct": correct,
        "pairs": pairs,
        "margin": float((chosen_N - rejected_N).mean()),
    }


class RewardTrainer(SupervisedTrainer):
    """Trains a `reward.model.RewardModel` on rows `{"chosen_ids": [...], "rejected_ids": [...]}`.

    Args:
        model, args and further keywords: as for `transformers.Trainer`.
        processing_class: the tokenizer; its pad id pads batches unless a `data_collator` is given.
    """

    default_collator = PairCollator
    default_metrics = staticmethod(pair_metrics)
    encoded = (("chosen_ids", "rejected_ids"), "align.data.encode.encode_comparisons")

    def __init__(self, model: nn.Module, args: Any, **kwargs: Any):
        accepted.require_module(model, "model", accepted.LOAD_REWARD_MODEL, values=True)
        disable_dropout(model)
        super().__init__(model, args, **kwargs)
        self._seen_3 = torch.zeros(3, dtype=torch.float64)  # correct, sum of margins, pairs since the last log

    def row_length(self, row: dict) -> int:
        return max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    def count_items(self, inputs: dict[str, Tensor]) -> int:
        return inputs["input_ids"].shape[0] // 2

    def compute_pair_losses(self, chosen_B: Tensor, rejected_B: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Loss of every pair, shape (B,); the seam for other preference losses.

        Args:
            chosen_B, rejected_B: scores of the two replies.
            inputs: the collated batch, first dimension 2B (chosen first), for columns a collator adds.
        """
        return pairwise_logistic(chosen_B, rejected_B)

    def pair_scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores (chosen_B, rejected_B) in one forward pass over the 2B rows."""
        scores_2B = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        chosen_B, rejected_B = scores_2B.chunk(2)
        return chosen_B, rejected_B

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Sum of the pair losses of this micro-batch over the step's pair count; scalar."""
        chosen_B, rejected_B = self.pair_scores(model, inputs)
        losses_B = self.compute_pair_losses(chosen_B, rejected_B, inputs)
        loss = self.mean_over_step(losses_B.sum(), len(losses_B), num_items_in_batch)
        self.note_margins(chosen_B, rejected_B)
        return (loss, {"chosen": chosen_B, "rejected": rejected_B}) if return_outputs else loss

    def note_margins(self, chosen_B: Tensor, rejected_B: Tensor) -> None:
        """Count training pairs in, for the next log."""
        margins_B = (chosen_B - rejected_B).detach().double()
        seen_3 = torch.stack([(margins_B > 0).sum().double(), margins_B.sum(), margins_B.new_tensor(len(margins_B))])
        self._seen_3 = self._seen_3.to(seen_3.device) + seen_3

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, Tensor]:
        """Per pair (chosen score, rejected score, loss), shape (B, 3), so that uneven last batches count exactly."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            chosen_B, rejected_B = self.pair_scores(model, inputs)
            losses_B = self.compute_pair_losses(chosen_B, rejected_B, inputs)
        return None, torch.stack([chosen_B, rejected_B, losses_B], dim=1).float(), torch.zeros_like(losses_B)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds accuracy and mean margin on the training pairs since the last log."""
        if "loss" in logs:
            seen_3 = self.accelerator.reduce(self._seen_3.to(self.args.device), reduction="sum")
            pairs = max(float(seen_3[2]), 1.0)
            logs |= {"accuracy": float(seen_3[0]) / pairs, "margin": float(seen_3[1]) / pairs}
            self._seen_3 = torch.zeros_like(self._seen_3)
        super().log(logs, start_time)

    def _sums_so_far(self) -> dict[str, Any]:
        correct, margins, pairs = self._seen_3.clone()
        return super()._sums_so_far() | {"correct": correct, "margins": margins, "pairs": pairs}

    def _take_sums(self, sums: dict[str, float]) -> None:
        super()._take_sums(sums)
        self._seen_3 = torch.tensor([sums[name] for name in ("correct", "margins", "pairs")], dtype=torch.float64)

    def _take_weights(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target = self.accelerator.unwrap_model(model if model is not None else self.model)
        with sharding.takes_whole(target):
            target.load_weights(resume_from_checkpoint)
