"""Reward training on groups: K replies to a prompt encoded once, all of their pairs learnt.

Loss of an optimizer step: mean over its global groups (prompts) of
(mean over the group's pairs of `reward.losses.preference_loss` + lm_weight * NLL of the best reply a token).
For two replies and default options that is the loss of `RewardTrainer`. InstructGPT (2203.02155, eq. 1) averages pairs
of a prompt likewise; the LM term is that of Askell et al. 2021, on the chosen reply alone, through the frozen output
layer of the language model that training started from.

With `share_prompts` the replies of a group share their prompt's computation (`reward.layout`, on CPUs `reward.flat`);
scores and gradients are those of encoding every reply apart, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align.data.pairs import GroupRow
from align.functional import token_logprobs
from align.runtime.padding import pad_right
from align.trainers.head import ask_in_blocks, rows_at_once
from align.trainers.reward import RewardTrainer
from reward.errors import ModelFileError
from reward.flat import flat_batch
from reward.layout import TokenGroup, tree_batch, tree_problem
from reward.losses import mean_by_group, preference_loss
from reward.shared import takes_flat


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """How groups are learnt; see `preference_loss` for the first two."""

    label_smoothing: float = 0.0
    centering: float = 0.0
    lm_weight: float = 0.0
    share_prompts: bool = False
    row_length: int | None = None  # tokens of a padded row that several groups share; default: the longest group


class GroupCollator:
    """`GroupRow`s -> what `RewardModel.forward` takes, and pairs as indices of its scores.

    Beside the model's inputs: `better`, `worse`, `margins`, `targets`, `groups` (P,), `num_groups`, and for the LM
    term `lm_rows`, `lm_columns`, `lm_ids`, `lm_shares`, `lm_groups` (M,): which state predicts which id.

    Args:
        flat: lay shared prompts in one row without padding (`reward.flat`), not in padded ones (`reward.layout`).
    """

    def __init__(self, pad_id: int, options: GroupOptions | None = None, *, flat: bool = False):
        self.pad_id, self.options, self.flat = pad_id, options or GroupOptions(), flat

    def __call__(self, rows: Sequence[GroupRow]) -> dict[str, Tensor]:
        if self.options.share_prompts:
            groups = [TokenGroup(row["prompt_ids"], row["reply_ids"]) for row in rows]
            batch = flat_batch(groups) if self.flat else tree_batch(groups, self.pad_id, self.options.row_length)
        else:
            ids, mask = pad_right([[*row["prompt_ids"], *r] for row in rows for r in row["reply_ids"]], self.pad_id)
            starts = [len(row["prompt_ids"]) for row in rows for _ in row["reply_ids"]]
            batch = {"input_ids": ids, "attention_mask": mask, "rows": torch.arange(len(ids)), "members": mask.bool()}
            batch["starts"] = torch.tensor(starts)
        found, first, best = [], 0, []
        for index, row in enumerate(rows):
            found += [(first + b, first + w, index, margin, target) for b, w, margin, target in row["pairs"]]
            best.append(_best(row))
            first += len(row["reply_ids"])
        better, worse, groups, margins, targets = (torch.tensor(column) for column in zip(*found, strict=True))
        batch |= {"better": better, "worse": worse, "groups": groups, "margins": margins, "targets": targets}
        batch["num_groups"] = len(rows)
        if self.options.lm_weight:
            batch |= _language_targets(rows, best, batch)
        return batch


def _best(row: GroupRow) -> int:
    losers = {worse for _, worse, _, target in row["pairs"] if target > 0.5}
    return next((better for better, *_ in row["pairs"] if better not in losers), row["pairs"][0][0])


def _language_targets(rows: Sequence[GroupRow], best: list[int], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    found, first = [], 0
    for index, row in enumerate(rows):
        reply, at = row["reply_ids"][best[index]], first + best[index]
        members_T = batch["members"][at]
        start = int(batch["starts"][at])
        before = int(members_T[:start].nonzero()[-1])  # the prompt's last token predicts the reply's first
        columns = [before, *range(start, start + len(reply) - 1)]
        found += [
            (int(batch["rows"][at]), c, token, 1 / len(reply), index) for c, token in zip(columns, reply, strict=True)
        ]
        first += len(row["reply_ids"])
    names = ("lm_rows", "lm_columns", "lm_ids", "lm_shares", "lm_groups")
    return {name: torch.tensor(column) for name, column in zip(names, zip(*found, strict=True), strict=True)}


class GroupRewardTrainer(RewardTrainer):
    """Trains a `RewardModel` on `GroupRow`s.

    Args:
        model, args and further keywords: as for `RewardTrainer`.
        options: how groups are learnt.
        output_layer: (V, d) weight of the language model's output, for `lm_weight`; it stays as it is.

    Raises:
        ValueError: `lm_weight` without an output layer.
        ModelFileError: `share_prompts` with an attention that takes no tree mask.
    """

    def __init__(
        self, model: nn.Module, args: Any, *, options: GroupOptions, output_layer: Tensor | None = None, **kwargs: Any
    ):
        if options.lm_weight and output_layer is None:
            raise ValueError("lm_weight needs the language model's output layer; start from a language model")
        if options.share_prompts and (problem := tree_problem(model.config, model._accepted)):
            raise ModelFileError(f"share_prompts: {problem}, or set share_prompts to false")
        if kwargs.get("data_collator") is None:
            flat = options.share_prompts and takes_flat(model)
            kwargs["data_collator"] = GroupCollator(kwargs["processing_class"].pad_token_id, options, flat=flat)
        self.options = options
        self.output_layer = None if output_layer is None else output_layer.detach()
        super().__init__(model, args, **kwargs)

    def row_length(self, row: GroupRow) -> int:
        if self.options.share_prompts:
            return len(row["prompt_ids"]) + sum(map(len, row["reply_ids"]))
        return len(row["prompt_ids"]) + max(map(len, row["reply_ids"]))

    def count_items(self, inputs: dict[str, Tensor]) -> int:
        return inputs["num_groups"]

    def forward_groups(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """(better_P, worse_P) scores and, where the LM term reads them, the hidden states (B, T, d)."""
        names = ("input_ids", "attention_mask", "position_ids", "members", "rows", "parts")
        given = {name: inputs[name] for name in names if name in inputs}
        if self.options.lm_weight:
            scores_N, states_BTd = model(**given, with_states=True)
        else:
            scores_N, states_BTd = model(**given), None
        return scores_N[inputs["better"]], scores_N[inputs["worse"]], states_BTd

    def pair_scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores (better_P, worse_P)."""
        return self.forward_groups(model, inputs)[:2]

    def compute_pair_losses(self, chosen_P: Tensor, rejected_P: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Loss of every pair, shape (P,), without the LM term."""
        return preference_loss(
            chosen_P,
            rejected_P,
            margins_B=inputs["margins"],
            targets_B=inputs["targets"],
            label_smoothing=self.options.label_smoothing,
            centering=self.options.centering,
        )

    def language_losses(self, states_BTd: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Mean NLL a token of each group's best reply, shape (G,), in nats."""
        states_Md = states_BTd[inputs["lm_rows"], inputs["lm_columns"]]
        self.output_layer = self.output_layer.to(states_Md.device, states_Md.dtype)
        ids_M, layer_Vd = inputs["lm_ids"], self.output_layer
        nll_M1 = ask_in_blocks(
            lambda states: states @ layer_Vd.T,
            states_Md,
            rows_at_once(len(layer_Vd)),
            lambda logits, at: -token_logprobs(logits, ids_M[at])[:, None],
        )
        sums_G = nll_M1.new_zeros(inputs["num_groups"])
        return sums_G.index_add(0, inputs["lm_groups"], nll_M1[:, 0] * inputs["lm_shares"])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Sum of the group losses of this micro-batch over the step's group count; scalar."""
        better_P, worse_P, states_BTd = self.forward_groups(model, inputs)
        count = inputs["num_groups"]
        losses_G = mean_by_group(self.compute_pair_losses(better_P, worse_P, inputs), inputs["groups"], count)
        if self.options.lm_weight:
            losses_G = losses_G + self.options.lm_weight * self.language_losses(states_BTd, inputs)
        loss = self.mean_over_step(losses_G.sum(), count, num_items_in_batch)
        self.note_margins(better_P, worse_P)
        return (loss, {"chosen": better_P, "rejected": worse_P}) if return_outputs else loss
