"""Supervised finetuning, and (continued) pretraining, by next-token prediction.

`transformers.Trainer` with the batches and the scale of `SupervisedTrainer`; the base stage uses the same class on
blocks of documents. The loss of an optimizer step is the mean over all its tokens with loss, over all conversations and
ranks (the Qwen report leaves the reduction open; section 2 of its chain: loss on assistant content and its end token).

Not `trl.SFTTrainer`: it forbids a collator of one's own with its packing and filters over-long rows silently.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from align.data.collate import CausalCollator
from align.functional.supervised import causal_nll_sum
from align.trainers.supervised import SupervisedTrainer


def nll_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Mean loss in nats a token from per-row (sum, count), and the number of tokens."""
    sums_N, counts_N = np.asarray(prediction.predictions, dtype=np.float64).T
    tokens = counts_N.sum()
    return {"loss": float(sums_N.sum() / max(tokens, 1.0)), "tokens": int(tokens)}


class SFTTrainer(SupervisedTrainer):
    """Trains a causal LM on rows `{"input_ids": [...], "labels": [...]}`, label -100 = no loss.

    Args:
        model, args and further keywords: as for `transformers.Trainer`.
        train_dataset, eval_dataset: lists of encoded rows (`align.data.encode`).
        processing_class: the tokenizer; its pad id pads batches unless a `data_collator` is given.
    """

    default_collator = CausalCollator
    default_metrics = staticmethod(nll_metrics)

    def row_length(self, row: dict) -> int:
        return len(row["input_ids"])

    def count_items(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["labels"][:, 1:].ne(-100).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Sum of token losses of this micro-batch over the step's token count; scalar."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        loss_sum, count = causal_nll_sum(outputs.logits, inputs["labels"])
        loss = self.mean_over_step(loss_sum, count, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, Tensor]:
        """Per row (loss sum, token count), shape (B, 2), so that uneven last batches count exactly."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits_BTV = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).logits
            rows = [causal_nll_sum(logits_BTV[i : i + 1], inputs["labels"][i : i + 1]) for i in range(len(logits_BTV))]
        sums_B2 = torch.stack(
            [torch.stack([s.double(), torch.as_tensor(c, device=s.device).double()]) for s, c in rows]
        )
        return None, sums_B2, torch.zeros(len(sums_B2), device=sums_B2.device)
