"""The sections of the supervised stages: base, sft, pmp, rm."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from align.recipe.cleaning_section import CleaningSection
from align.recipe.fields import OptimSection, Source
from align.recipe.section import Count, LocalPath, Positive, Rate, Section, Share, StageSection

Mask = Literal["assistant_only", "user_content_only", "qwen_script", "last_turn_only", "all"]
LossReduction = Literal["token_mean", "session_mean", "turn_mean", "prefix_mean"]
GHOST_MASKS = ("assistant_only", "last_turn_only")


class SupervisedSection(OptimSection, StageSection):
    """What base, sft, pmp and rm have in common.

    `batch_size` is the number of rows (pairs for pmp and rm) of one optimizer step over all ranks, `micro_batch_size`
    the number a rank holds at once; gradients do not depend on the latter. `max_steps` wins over `num_train_epochs`.
    Without `eval_data`, the share `holdout` of `data` is held out by a hash of the prompt. `cleaning` concerns `data`.
    """

    data: tuple[Source, ...] = Field(min_length=1)
    cleaning: CleaningSection | None = None
    eval_data: tuple[Source, ...] = ()
    holdout: Share = 0.05
    init_from: LocalPath | None = None
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

    @property
    def length(self) -> str:
        """For how long it trains, in words."""
        return f"{self.max_steps} steps" if self.max_steps is not None else f"{self.num_train_epochs:g} epochs"


class BaseSection(SupervisedSection):
    """(Continued) pretraining on documents, concatenated into blocks of `max_length` tokens."""


class Instruction(Section):
    """An instruction that holds for a whole conversation ("Answer in French from now on.").

    `text` stands on every user turn while the reply is sampled. With `short` ("In French."), half of the conversations,
    drawn by the seed, are trained with that in its place. A plain string stands for `{text: string}`.
    """

    text: str = Field(min_length=1)
    short: str | None = Field(None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _plain_string(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class GhostSection(Section):
    """Ghost Attention (Llama 2, A.3.5): see `align.stages.ghost`.

    `share` of the conversations with two or more user turns get one of the `instructions`, drawn by the seed; the
    stage's starting model samples their last reply at `temperature` and `top_p`, of at most `max_completion_length`
    tokens.
    """

    instructions: tuple[Instruction, ...] = Field(min_length=1)
    share: float = Field(0.2, gt=0, le=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)


class SFTSection(SupervisedSection):
    """ChatML supervised finetuning.

    What gets loss, `mask`: `assistant_only` (assistant content and its `<|im_end|>`), `user_content_only`,
    `qwen_script` (as Qwen's own finetune.py), `last_turn_only` (the last reply), `all`.

    How losses are put together, `loss_reduction`: `token_mean` (over all tokens of an optimizer step), `session_mean`
    (every conversation counts 1), `turn_mean` (every turn counts 1), `prefix_mean` (every beginning of a conversation
    is a sample whose loss is the mean over its turns).

    `default_system: template` gives conversations without a system turn the one of the tokenizer's own template, which
    the saved model then carries; `thinking` keeps the reasoning before replies, drops it, or does as Qwen3's template
    (the last reply's alone, an empty block where there is none). `packing` joins conversations, which do not see one
    another, into rows of `max_length` tokens; batch sizes, steps and epochs then count packed rows. `group_by_length`
    makes optimizer steps of rows of like length.

    Held-out loss and `eval_num_replies` sampled replies are taken at every `eval_steps` and at the end; `keep_best`
    leaves the model of the lowest held-out loss, not the last one.
    """

    mask: Mask = "assistant_only"
    loss_reduction: LossReduction = "token_mean"
    default_system: Literal["none", "template"] = "none"
    thinking: Literal["keep", "drop", "template"] = "keep"
    packing: bool = False
    group_by_length: bool = False
    ghost_attention: GhostSection | None = None
    keep_best: bool = False
    eval_num_replies: Count = 64
    max_completion_length: Positive = 128

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        if self.packing and self.group_by_length:
            broken.append(("group_by_length", "packed rows are of like length already; use it or packing, not both"))
        if self.ghost_attention is not None and self.mask not in GHOST_MASKS:
            sentence = (
                f"teaches the last reply alone, but mask {self.mask} puts loss on what the user writes; "
                f"use mask {' or '.join(GHOST_MASKS)}"
            )
            broken.append(("ghost_attention", sentence))
        if self.keep_best and self.eval_steps is None:
            broken.append(("keep_best", "needs eval_steps: how often to measure the held-out loss"))
        if self.keep_best and not self.eval_data and not self.holdout:
            broken.append(("keep_best", "needs held-out conversations: name eval_data or set holdout above 0"))
        return broken

    def described(self) -> str:
        rows = "packed " if self.packing else "length-grouped " if self.group_by_length else ""
        text = (
            f"sft: {self.length} on {rows}rows of at most {self.max_length} tokens (longer ones: {self.on_overlong}); "
            f"loss on {self.mask}, {self.loss_reduction}"
        )
        if self.ghost_attention is not None:
            text += f"; ghost attention on a share of {self.ghost_attention.share:g} of the multi-turn conversations"
        if self.eval_steps is not None:
            text += f"; held-out loss and {self.eval_num_replies} replies every {self.eval_steps} steps"
        return text + ("; the best model by held-out loss is kept" if self.keep_best else "")


class RewardSection(SupervisedSection):
    """Preference-model pretraining and reward-model finetuning: pairwise logistic loss on a pooling head.

    `margin`: `small` and `large` are Llama 2's on the grades 1 to 4, `scale` is `margin_scale` times the grade.
    `rankings: prompts` makes one group of all replies to a prompt (InstructGPT): sources of scored replies (shp, posts,
    ultrafeedback, replies, edited, ...) are read with their scores, comparisons of one prompt and source are joined,
    and `margin` takes the difference of scores as grade. With `ties: soft` equal scores are learnt as target 0.5.
    `min_grade` keeps pairs of that grade or more (3: significantly better and better), `tag_balanced` that many prompts
    by the tags of their pairs (InsTag), with all of their pairs. `binarise` makes a GOOD and a BAD pair of each (PMP).
    `source_weights` are by the sources' path (hub:org/name), 1 where none is named; rows of a named source count to it
    whatever source they name themselves. `share_prompts` computes the prompt of a pair once. After training the replies
    of the demonstrations in `reference_data` get mean score 0 (`center_scores`) and variance 1 (`unit_variance`).
    """

    unit: ClassVar[str] = "pairs"

    pooling: Literal["end_token", "last_token", "mean", "max", "attention", "weighted_mean"] = "end_token"
    margin: Literal["none", "small", "large", "scale"] = "none"
    margin_scale: Rate = 1.0
    rankings: Literal["pairs", "prompts"] = "pairs"
    ties: Literal["drop", "soft"] = "drop"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    centering: float = Field(0.0, ge=0)
    lm_weight: float = Field(0.0, ge=0)
    min_grade: float | None = None
    tag_balanced: Positive | None = None
    binarise: bool = False
    source_weights: dict[str, Rate] = Field(default_factory=dict)
    share_prompts: bool = False
    center_scores: bool = False
    unit_variance: bool = False
    reference_data: tuple[Source, ...] = ()
    reference_size: Positive = 256

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        if self.attention_dropout:
            broken.append(("attention_dropout", "a reward model is trained without dropout; remove the key"))
        if self.unit_variance and not self.center_scores:
            broken.append(("unit_variance", "needs the reference replies of center_scores; set center_scores to true"))
        if self.margin_scale != 1 and self.margin != "scale":
            broken.append(("margin_scale", f"margin '{self.margin}' does not use it; set margin to scale"))
        if self.binarise and self.margin != "none":
            broken.append(("margin", "a GOOD and BAD pair has no strength; set margin to none, or binarise to false"))
        if self.ties == "soft" and self.rankings == "pairs":
            broken.append(("ties", "only scored replies have ties; set rankings to prompts, or ties to drop"))
        if self.ties == "soft" and self.binarise:
            broken.append(("ties", "a tie has no GOOD and BAD reply; set ties to drop, or binarise to false"))
        if self.min_grade is not None and self.rankings == "prompts":
            broken.append(("min_grade", "chooses among single pairs; set rankings to pairs, or remove the key"))
        known = {source.name for source in self.data}
        for name in sorted(set(self.source_weights) - known):
            broken.append(("source_weights", f"'{name}' is no source of data; name one of {', '.join(sorted(known))}"))
        return broken

    @property
    def grouped(self) -> bool:
        """Whether any option needs groups of replies; else pairs are trained as they always were."""
        plain = self.margin == "none" and not (self.label_smoothing or self.centering or self.lm_weight)
        return (
            not plain or self.rankings == "prompts" or self.binarise or bool(self.source_weights) or self.share_prompts
        )
