"""Direct preference optimization (Rafailov et al. 2023, 2305.18290) on `trl.DPOTrainer`, with our tokens and masks.

The loss is TRL's: -log sigmoid(beta ((chosen - ref_chosen) - (rejected - ref_rejected))) of summed log-probabilities,
and with `nll_coef` so many times the chosen replies' negative log-likelihood (its loss type `sft`; Llama 3, 4.1.4).

What is ours, and why:
- Rows are encoded already (`align.data.preferences`): TRL renders and tokenises text again, counts every token behind
  the prompt, and cuts over-long rows.
- The step's loss is exact: TRL takes the mean of every micro-batch, and of these the mean, so that gradients would
  depend on how a batch is cut. Here pairs are weighed by the global pairs of the step, and the likelihood's tokens by
  its global tokens (Pang et al. 2024, 2404.19733, whom Llama 3 follows, divide each reply's by its own length).
- The reference's log-probabilities are computed once, before the first step, of the model as it is then: with a new
  adapter that is the base, with one that goes on it is what an earlier stage made of it. They are kept beside the
  checkpoints (`reference.json`) for a run that goes on.
- Its figures are sums over pairs that checkpoints keep, so that a resumed run logs what a whole one would.
- TRL rounds the adapter of a 4-bit model to bfloat16, in which small steps are lost, copies it for the reference, and
  writes the pad token into the model's config, which would freeze its embedding later: all three are taken back.
- Batches, checkpoints and the rest are those of every supervised stage (`align.trainers.supervised`); nothing is sent.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction
from trl import DPOConfig
from trl import DPOTrainer as TRLTrainer

from align.data.collate import PreferenceCollator
from align.data.fingerprint import fingerprint
from align.runtime.files import write_json
from align.runtime.json_files import read_object
from align.runtime.peft_model import is_peft
from align.trainers import accepted
from align.trainers.supervised import SupervisedTrainer, disable_dropout

REFERENCE_FILE = "reference.json"
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
FIGURES = {  # as they are logged -> as TRL calls them
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "rewards/chosen": "rewards/chosen",
    "rewards/rejected": "rewards/rejected",
}


def dpo_options(*, beta: float, nll_coef: float, batch_size: int) -> dict[str, Any]:
    """What a `DPOConfig` is told beside the options of every trainer; `batch_size`: pairs whose reference
    log-probabilities are computed at once."""
    terms = {"sigmoid": 1.0} | ({"sft": nll_coef} if nll_coef else {})
    return {
        "beta": beta,
        "loss_type": [*terms],
        "loss_weights": [*terms.values()],
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": batch_size,
        "max_length": None,  # rows are cut when they are encoded
        "router_aux_loss_coef": 0.0,
        "gradient_checkpointing": False,  # switched on where the model is loaded, and here again after the reference
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }


def preference_metrics(prediction: EvalPrediction, nll_coef: float = 0.0) -> dict[str, float]:
    """Loss as of training, accuracy of the implicit rewards with its counts, and their mean margin, of per-pair
    (chosen reward, rejected reward, chosen log-probability, tokens of it); equal rewards are not correct."""
    chosen_N, rejected_N, logps_N, tokens_N = np.asarray(prediction.predictions, dtype=np.float64).T
    margins_N = chosen_N - rejected_N
    nll = -float(logps_N.sum() / tokens_N.sum())
    correct, pairs = int((margins_N > 0).sum()), len(margins_N)
    return {
        "loss": float(np.logaddexp(0.0, -margins_N).mean()) + nll_coef * nll,
        "nll": nll,
        "accuracy": correct / pairs,
        "correct": correct,
        "pairs": pairs,
        "margin": float(margins_N.mean()),
    }


class DPOTrainer(SupervisedTrainer, TRLTrainer):
    """Trains a causal language model on rows of `align.data.preferences.encode_preferences`.

    Args:
        model: the policy as it starts, which is the reference: all of its weights are trained, or an adapter.
        args: a `trl.DPOConfig` with `dpo_options(...)`.
        further keywords: as for `transformers.Trainer`; rows that are measured belong into `eval_dataset`, since the
            reference is asked about them before training.
        processing_class: the tokenizer; its pad id pads batches unless a `data_collator` is given.
    """

    default_collator = PreferenceCollator
    default_metrics = staticmethod(preference_metrics)
    encoded = (("prompt_ids", "chosen_ids", "rejected_ids"), "align.data.preferences.encode_preferences")
    loss_is_scaled_for_ga = None  # as of `transformers.Trainer`: `compute_loss` has weighed it by the step's items

    def __init__(self, model: nn.Module, args: DPOConfig, **kwargs: Any):
        accepted.require_module(model, "model", accepted.LOAD_MODEL)
        _require_config(args)
        disable_dropout(model)
        self._rows = {name: kwargs.get(f"{name}_dataset") for name in ("train", "eval")}
        for name, rows in self._rows.items():
            accepted.require_encoded(rows, *self.encoded, f"{name}_dataset")
            kwargs[f"{name}_dataset"] = Dataset.from_list(rows) if rows else None
        self._reference: dict[str, Any] = read_object(Path(args.output_dir) / REFERENCE_FILE, "remove it") or {}
        self._seen_5 = torch.zeros(len(FIGURES) + 1, dtype=torch.float64)  # sums of FIGURES, pairs since the last log
        coefs = dict(zip(args.loss_type, args.loss_weights, strict=True))
        kwargs.setdefault("compute_metrics", partial(type(self).default_metrics, nll_coef=coefs.get("sft", 0.0)))
        with _as_it_was(model):
            super().__init__(model, args, **kwargs)
        self._coefs, self.is_fsdp_enabled = coefs, self.accelerator.is_fsdp2
        self.train_dataset, self.eval_dataset = self._rows["train"], self._rows["eval"] or None
        self.data.found()  # of the rows as they were encoded, whatever machine computed the reference
        self.train_dataset, self.eval_dataset = (self._with_reference(name) for name in self._rows)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = False  # until the reference is asked: TRL would load a second model for it

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # it is encoded

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """See to `_reference`, unless an earlier start of the run has kept it."""
        of = {"model": self._precompute_model_hash} | fingerprint(self._rows[name])
        if self._reference.get(name, {}).get("of") != of:
            found = self._reference_logps(self._rows[name], batch_size)
            self._reference[name] = {"of": of} | dict(zip(REFERENCE, found, strict=True))
            if self.accelerator.is_main_process:
                write_json(Path(self.args.output_dir) / REFERENCE_FILE, self._reference)
        return dataset

    def _reference_logps(self, rows: list[dict[str, Any]], batch_size: int) -> list[list[float]]:
        """Of the chosen and of the rejected replies, in the rows' order; like lengths are computed together."""
        order = sorted(range(len(rows)), key=lambda at: -self.row_length(rows[at]))
        loader = DataLoader(
            [rows[at] for at in order],
            batch_size=batch_size,
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # the global one stays as it is, whether they are computed or read
        )
        model, found = self.ref_model or self.model, []
        for batch in self.accelerator.prepare(loader):
            sides = torch.stack(self.compute_ref_log_probs(model, batch), dim=1)
            found += self.accelerator.gather_for_metrics(sides).tolist()
        by_row = dict(zip(order, found, strict=True))
        return [[by_row[at][side] for at in range(len(rows))] for side in (0, 1)]

    def _with_reference(self, name: str) -> list[dict[str, Any]] | None:
        """The rows with the reference's log-probabilities."""
        if not self._rows[name]:
            return None
        known = zip(*(self._reference[name][column] for column in REFERENCE), strict=True)
        return [
            {**row, **dict(zip(REFERENCE, pair, strict=True))}
            for row, pair in zip(self._rows[name], known, strict=True)
        ]

    def _send_telemetry(self) -> None:
        """Nothing, however the trainer was started."""

    def row_length(self, row: dict) -> int:
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    def count_items(self, inputs: dict[str, Tensor]) -> Tensor:
        """Pairs, and tokens of their chosen replies that count; int64 (2,)."""
        mask_BT = inputs["completion_mask"].chunk(2)[0][:, 1:]
        return torch.stack([mask_BT.new_tensor(len(mask_BT)), mask_BT.sum()])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """TRL's loss, each of its means weighed by this micro-batch's share of the step's pairs or tokens; scalar."""
        own = self.count_items(inputs)
        ranks = 1 if num_items_in_batch is None else self.accelerator.num_processes
        whole = own if num_items_in_batch is None else num_items_in_batch
        pairs, tokens = (ranks * own.double() / whole.clamp(min=1)).tolist()
        self.loss_weights = [coef * (tokens if name == "sft" else pairs) for name, coef in self._coefs.items()]
        loss = super().compute_loss(model, inputs)
        told = self._metrics["train" if self.model.training else "eval"]
        if self.model.training:
            means_4 = torch.tensor([told[name][-1] for name in FIGURES.values()], dtype=torch.float64)
            self._seen_5 += int(own[0]) * torch.cat([means_4, means_4.new_ones(1)])
        told.clear()  # means of micro-batches, which no checkpoint would keep
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[None, Tensor, Tensor]:
        """Per pair (chosen reward, rejected reward, chosen log-probability, tokens of it), shape (B, 4), so that uneven
        last batches count exactly."""
        inputs = self._prepare_inputs(inputs)
        labels_2BT = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), self.compute_loss_context_manager():
            said = model(**asked, labels=labels_2BT, fused_lm_head=True, use_cache=False)
        logps_2B = said.log_probs.float().sum(dim=1)
        rewards_2B = self.beta * (logps_2B - torch.cat([inputs[name] for name in REFERENCE]))
        tokens_B = inputs["completion_mask"].chunk(2)[0][:, 1:].sum(dim=1)
        figures_B4 = torch.stack([*rewards_2B.chunk(2), logps_2B.chunk(2)[0], tokens_B.float()], dim=1)
        return None, figures_B4, torch.zeros_like(figures_B4[:, 0])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds accuracy, mean margin and rewards of the training pairs since the last log."""
        if "loss" in logs:
            seen_5 = self.accelerator.reduce(self._seen_5.to(self.args.device), reduction="sum")
            logs |= dict(zip(FIGURES, (seen_5[:-1] / seen_5[-1].clamp(min=1)).tolist(), strict=True))
            self._seen_5 = torch.zeros_like(self._seen_5)
        super().log(logs, start_time)

    def _sums_so_far(self) -> dict[str, Any]:
        return super()._sums_so_far() | dict(zip((*FIGURES, "pairs"), self._seen_5.clone(), strict=True))

    def _take_sums(self, sums: dict[str, float]) -> None:
        super()._take_sums(sums)
        self._seen_5 = torch.tensor([sums[name] for name in (*FIGURES, "pairs")], dtype=torch.float64)


def _require_config(args: Any) -> None:
    accepted.require_arguments(args, "args")
    known = isinstance(args, DPOConfig) and args.precompute_ref_log_probs and args.loss_weights
    if not known or args.loss_type[:1] != ["sigmoid"] or not {*args.loss_type} <= {"sigmoid", "sft"}:
        cure = "trl.DPOConfig(..., **dpo_options(beta=…, nll_coef=…, batch_size=…)) of align.trainers.dpo"
        raise TypeError(f"args: must be {cure}")


class _as_it_was:
    """Around TRL's making of a trainer: what it changes in the model is taken back afterwards."""

    def __init__(self, model: nn.Module):
        self.model, self.config = model, model.config.get_text_config()

    def __enter__(self) -> None:
        self.pad = getattr(self.config, "pad_token_id", None)
        quantised = getattr(self.model, "is_loaded_in_4bit", False)
        trained = ((name, part) for name, part in self.model.named_parameters() if part.requires_grad)
        self.exact = {name: part.data for name, part in trained} if quantised else {}

    def __exit__(self, *_: Any) -> None:
        self.config.pad_token_id = self.pad
        if is_peft(self.model) and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")
        for name, part in self.model.named_parameters():
            if name in self.exact:
                part.data = self.exact[name].to(part.device)
