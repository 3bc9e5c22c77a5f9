"""Supervised finetuning, and (continued) pretraining, by next-token prediction.

`transformers.Trainer` with the batches and the scale of `SupervisedTrainer`; the base stage uses the same class on
blocks of documents. By default the loss of an optimizer step is the mean over all its tokens with loss, over all
conversations and ranks (the Qwen report leaves the reduction open; section 2 of its chain: loss on assistant content
and its end token); `align.functional.reductions` has the others. Whatever the reduction, gradients do not depend on
micro-batches, packing, padding or the number of ranks. Logits are computed only where there is loss.

Not `trl.SFTTrainer`: it forbids a collator of one's own with its packing, truncates over-long rows silently, and its
packing keeps samples apart with flash attention alone.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction

from align.data.collate import CausalCollator
from align.data.packing import PackedRows, PackingError
from align.functional.linear_logprobs import TokenQuestion
from align.functional.reductions import REDUCTIONS, Reduction, loss_weights
from align.functional.supervised import predicting_positions
from align.trainers import accepted
from align.trainers.causal_forward import (
    ask_at,
    attention_of,
    flat_samples,
    flattened,
    packed_inputs,
    prove_packing,
    takes_flat,
)
from align.trainers.supervised import SupervisedTrainer

LOG = logging.getLogger("align")


def nll_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Mean loss in nats a token from per-row (sum, count), and the number of tokens."""
    sums_N, counts_N = np.asarray(prediction.predictions, dtype=np.float64).T
    tokens = counts_N.sum()
    return {"loss": float(sums_N.sum() / max(tokens, 1.0)), "tokens": int(tokens)}


class SFTTrainer(SupervisedTrainer):
    """Trains a causal LM on rows `{"input_ids": [...], "labels": [...], "turns": [...]}`, label -100 = no loss.

    Args:
        model, args and further keywords: as for `transformers.Trainer`.
        train_dataset, eval_dataset: lists of encoded rows (`align.data.encode`). Held-out rows are never packed, and
            their loss is always the mean over tokens, so that it can be compared across reductions.
        processing_class: the tokenizer; its pad id pads batches unless a `data_collator` is given.
        loss_reduction: "token_mean", "session_mean", "turn_mean" or "prefix_mean" (`align.functional.reductions`);
            all but the first need `turns` in the rows.
        packing: join training rows into packed rows (`align.data.packing`); a batch then counts packed rows, and so do
            epochs and steps. `packing_report` says what came of it.
        max_length: tokens of a packed row; the length of the longest row when it is None.
        group_by_length: fill optimizer steps with rows of like length (`align.trainers.sampling`).
        max_z_coef: of the max-z loss (Baichuan 2, 2309.10305: 2e-4): with every token's loss goes `max_z_coef` times
            the square of the largest logit at it, whose mean is logged as `max_z`. Held-out loss is without it.

    Raises:
        ValueError: an unknown reduction; or grouping with a mixture.
        PackingError: nothing to pack, packing and grouping at once, or a collator or a model with which packed samples
            would see one another.
    """

    default_collator = CausalCollator
    default_metrics = staticmethod(nll_metrics)
    encoded = (("input_ids",), "align.data.encode.encode_demonstrations")

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        *,
        loss_reduction: Reduction = "token_mean",
        packing: bool = False,
        max_length: int | None = None,
        group_by_length: bool = False,
        max_z_coef: float = 0.0,
        **kwargs: Any,
    ):
        accepted.require_module(model, "model", accepted.LOAD_MODEL)
        if loss_reduction not in REDUCTIONS:
            raise ValueError(f"loss_reduction must be one of {', '.join(REDUCTIONS)}, found '{loss_reduction}'")
        if packing and group_by_length:
            raise PackingError("packed rows are of one length already: choose packing or group_by_length, not both")
        if group_by_length and kwargs.get("mixture") is not None:
            raise ValueError("group_by_length fills steps with rows of like length: choose it or mixture, not both")
        self.loss_reduction, self.group_by_length = loss_reduction, group_by_length
        self.max_z_coef, self._max_z_2 = max_z_coef, torch.zeros(2, dtype=torch.float64)  # sum and units, to be logged
        self.packing_report: dict[str, int | float] | None = None
        self._is_flat: bool | None = None  # whether the model takes flat rows; tried at the first batch
        if kwargs.get("data_collator") is None:
            accepted.require_tokenizer(kwargs.get("processing_class"), "processing_class")
            pad_id = kwargs["processing_class"].pad_token_id
            kwargs["data_collator"] = CausalCollator(pad_id, with_turns=loss_reduction != "token_mean")
        if packing and kwargs.get("train_dataset") is not None:
            accepted.require_encoded(kwargs["train_dataset"], *self.encoded, "train_dataset")
            packed = PackedRows(kwargs["train_dataset"], max_length)
            if "segments" not in kwargs["data_collator"]([packed[0]]):
                raise PackingError("the data_collator gives no 'segments', so packed samples would see one another")
            prove_packing(model, packed.max_length)
            kwargs["train_dataset"], self.packing_report = packed, packed.report()
            found = self.packing_report
            LOG.info("packed %d rows into %d of %d tokens", found["rows"], found["packs"], found["max_length"])
        super().__init__(model, args, **kwargs)

    def row_length(self, row: dict) -> int:
        return len(row["input_ids"])

    def token_weights(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the loss of each label of a training batch weighs, and the units its sum is divided by: weights_BT and
        a 0-dimensional int64; the seam for other weightings. Held-out loss does not read it.

        Args:
            inputs: the collated batch, with the columns a collator adds.
        """
        return loss_weights(inputs["labels"], self.loss_reduction, inputs.get("turns"), inputs.get("segments"))

    def count_items(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.token_weights(inputs)[1]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Weighted sum of token losses of this micro-batch over the step's units; scalar.

        With `return_outputs`, the outputs hold the logits of the positions with loss alone, (N, V), and where these are
        very many what the head says of them: log-probabilities, and their weighted sum in the first row of the last
        column.
        """
        weights_BT, units = self.token_weights(inputs)
        outputs, answers_NA, flat_N = self._forward(model, inputs, weights_BT, sum_up=True, with_logits=return_outputs)
        loss = self.mean_over_step(-answers_NA[:, -1].sum(), units, num_items_in_batch)
        if self.max_z_coef and model.training:
            squares_N = answers_NA[:, 1].detach().double().square() * weights_BT.flatten()[flat_N + 1]
            self._max_z_2 = self._max_z_2.to(loss.device) + torch.stack([squares_N.sum(), units.double()])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean square of the largest logits since the last log, where they are in the loss."""
        if "loss" in logs and self.max_z_coef:
            total, units = self.accelerator.reduce(self._max_z_2.to(self.args.device), reduction="sum").tolist()
            logs["max_z"] = total / max(units, 1.0)
            self._max_z_2 = torch.zeros_like(self._max_z_2)
        super().log(logs, start_time)

    def _sums_so_far(self) -> dict[str, Any]:
        total, units = self._max_z_2.clone()
        more = {"max_z": total, "max_z_units": units} if self.max_z_coef else {}
        return super()._sums_so_far() | more

    def _take_sums(self, sums: dict[str, float]) -> None:
        super()._take_sums(sums)
        self._max_z_2 = torch.tensor([sums.get(name, 0.0) for name in ("max_z", "max_z_units")], dtype=torch.float64)

    def _forward(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        weights_BT: Tensor,
        *,
        sum_up: bool = False,
        with_logits: bool = False,
    ) -> tuple[Any, Tensor, Tensor]:
        """The model's output; log-probability of the N labels that weigh something (and, `sum_up`, in the first row of
        the last column the weighted sum that training maximises; before it, with a max-z loss, the largest logits), and
        their flat positions. `with_logits`: in the output, where they are not very many.
        """
        flat_N = predicting_positions(weights_BT)
        labels_N, weights_N = (part_BT.flatten()[flat_N + 1] for part_BT in (inputs["labels"], weights_BT))
        called, at_N = self._called(model, inputs, flat_N)
        summed = {"weights_N": weights_N, "max_z_coef": self.max_z_coef} if sum_up else {}
        question = TokenQuestion(labels_N, **summed)
        ask = question.__call__ if with_logits else question  # only a question as such is answered without them
        return *ask_at(model, self.model, called, at_N, ask), flat_N

    def _called(self, model: nn.Module, inputs: dict[str, Tensor], flat_N: Tensor) -> tuple[dict[str, Any], Tensor]:
        """What `forward` is called with, and where in that the positions lie."""
        if self._is_flat is None:
            self._is_flat = takes_flat(model, self.model)
        if self._is_flat:
            called, place = flat_samples(inputs)
            return called, place[flat_N]
        if "segments" not in inputs:
            return {name: inputs[name] for name in ("input_ids", "attention_mask")}, flat_N
        implementation = attention_of(self.model)
        if implementation == "flash_attention_2":
            inputs, place = flattened(inputs)
            flat_N = place[flat_N]
        return packed_inputs(inputs, implementation, self.model.dtype), flat_N

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, Tensor]:
        """Per row (loss sum, token count), shape (B, 2), so that uneven last batches count exactly."""
        inputs = self._prepare_inputs(inputs)
        weights_BT, _ = loss_weights(inputs["labels"])
        with torch.no_grad(), self.compute_loss_context_manager():
            _, logps_N1, flat_N = self._forward(model, inputs, weights_BT)
            row_N = flat_N // weights_BT.shape[1]
            nll_N = -logps_N1[:, 0].double()
        sums_B2 = torch.zeros(len(weights_BT), 2, dtype=torch.float64, device=nll_N.device)
        sums_B2.index_add_(0, row_N, torch.stack([nll_N, torch.ones_like(nll_N)], dim=1))
        return None, sums_B2, torch.zeros(len(sums_B2), device=sums_B2.device)
