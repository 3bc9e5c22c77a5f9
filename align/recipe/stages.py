"""The sections of the supervised stages: base, sft, pmp, rm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from align.recipe.fields import Count, OptimSection, Positive, Share, Source


class SupervisedSection(OptimSection):
    """What base, sft, pmp and rm have in common.

    `batch_size` is the number of rows (pairs for pmp and rm) of one optimizer step over all ranks, `micro_batch_size`
    the number a rank holds at once; gradients do not depend on the latter. `max_steps` wins over `num_train_epochs`.
    Without `eval_data`, the share `holdout` of `data` is held out by a hash of the prompt.
    """

    data: tuple[Source, ...] = Field(min_length=1)
    eval_data: tuple[Source, ...] = ()
    holdout: Share = 0.05
    init_from: str | None = None
    max_length: Positive
    on_overlong: Literal["drop", "truncate", "error"] = "drop"
    batch_size: Positive
    micro_batch_size: Positive
    eval_batch_size: Positive = 64
    num_train_epochs: float = Field(1.0, gt=0)
    max_steps: Positive | None = None
    attention_dropout: Share = 0.0
    logging_steps: Positive = 10
    eval_steps: Positive | None = None
    save_steps: Positive | None = None
    save_total_limit: Positive = 2

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        if self.max_steps is not None and self.max_steps <= self.warmup_steps:
            sentence = (
                f"{self.warmup_steps} is not below max_steps ({self.max_steps}): the learning rate would never be "
                "reached; lower it or raise max_steps"
            )
            broken.append(("warmup_steps", sentence))
        if self.holdout == 1 and not self.eval_data:
            broken.append(("holdout", "1 would hold out everything and leave nothing to train on; use a share below 1"))
        return broken


class BaseSection(SupervisedSection):
    """(Continued) pretraining on documents, concatenated into blocks of `max_length` tokens."""


class SFTSection(SupervisedSection):
    """ChatML supervised finetuning; loss on assistant content and its `<|im_end|>`."""

    eval_num_replies: Count = 64
    max_completion_length: Positive = 128


class RewardSection(SupervisedSection):
    """Preference-model pretraining and reward-model finetuning: pairwise logistic loss on the end-token head.

    `reference_data` are demonstrations whose replies get mean score 0 after training (`center_scores`).
    """

    pooling: Literal["end_token", "last_token", "mean", "max", "attention", "weighted_mean"] = "end_token"
    center_scores: bool = False
    reference_data: tuple[Source, ...] = ()
    reference_size: Positive = 256

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        if self.attention_dropout:
            broken.append(("attention_dropout", "a reward model is trained without dropout; remove the key"))
        return broken
