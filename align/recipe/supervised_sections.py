"""The sections of the supervised stages: base, sft, pmp, rm; what they share dpo and rejection have too."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from align.recipe.cleaning_section import CleaningSection
from align.recipe.fields import OptimSection, Source
from align.recipe.mixture_section import MixtureSection, epochs_rules, mixture_rules
from align.recipe.section import Count, LocalPath, Positive, Rate, Section, Share, StageSection
from align.recipe.selection_section import SelectionSection

Mask = Literal["assistant_only", "user_content_only", "qwen_script", "last_turn_only", "all"]
LossReduction = Literal["token_mean", "session_mean", "turn_mean", "prefix_mean"]
REPLY_MASKS = ("assistant_only", "last_turn_only")


class SupervisedSection(OptimSection, StageSection):
    """What base, sft, pmp, rm, dpo and the finetuning of rejection have in common."""

    counts_epochs: ClassVar[bool] = True

    data: tuple[Source, ...] = Field(min_length=1)
    """What is trained on: documents (base), demonstrations (sft), comparisons (pmp, rm, dpo), prompts
    (rejection)."""
    cleaning: CleaningSection | None = None
    """Steps that `data` goes through first; without the section none."""
    selection: SelectionSection | None = None
    """Which of the training rows are learnt from; without the section all."""
    mixture: MixtureSection | None = None
    """What every optimizer step takes of each source or category; without the section rows come as they are."""
    eval_data: tuple[Source, ...] = ()
    """Held-out records; without them the share `holdout` of `data`."""
    holdout: Share = 0.05
    """Share of `data` that is held out, by a hash of the prompt, where there is no `eval_data`."""
    init_from: LocalPath | None = None
    """What it starts from: a stage, a folder or a hub id; by default the stage before."""
    max_length: Positive
    """Tokens of a row."""
    on_overlong: Literal["drop", "truncate", "error"] = "drop"
    """A longer row is left out, loses whole old turns, or stops the run."""
    batch_size: Positive
    """Rows (pairs for pmp, rm and dpo) of one optimizer step over all processes."""
    micro_batch_size: Positive
    """Rows that a process holds at once, at most; gradients do not depend on it."""
    eval_batch_size: Positive = 64
    """Rows that a process evaluates at once."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    max_steps: Positive | None = None
    """Optimizer steps, in place of `num_train_epochs`."""
    attention_dropout: Share = 0.0
    """Dropout of attention, in base and sft."""
    logging_steps: Positive = 10
    """Optimizer steps between two rows of metrics.jsonl."""
    eval_steps: Positive | None = None
    """Optimizer steps between two evaluations; without it one, at the end."""
    save_steps: Positive | None = None
    """Optimizer steps between two checkpoints; without it none on the way."""
    save_total_limit: Positive = 2
    """Checkpoints that are kept."""

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
        if self.mixture is not None and getattr(self, "group_by_length", False):
            sentence = "fills steps with rows of like length, whose shares are not those of mixture; use one of the two"
            broken.append(("group_by_length", sentence))
        broken += mixture_rules(self) + epochs_rules(self)
        return broken + ([] if self.early_stopping is None else self.stopping_rules())

    def stopping_rules(self) -> list[tuple[str, str]]:
        """What `early_stopping` lacks."""
        if self.eval_steps is None:
            return [("early_stopping", "needs eval_steps: how often to evaluate")]
        if not self.eval_data and not self.holdout:
            return [("early_stopping", "needs held-out records: name eval_data or set holdout above 0")]
        return []

    @property
    def rows_a_unit(self) -> int:
        """Rows of tokens that one of what batch sizes count makes: two of a pair."""
        return 2 if self.unit == "pairs" else 1

    @property
    def length(self) -> str:
        """For how long it trains, in words."""
        return f"{self.max_steps} steps" if self.max_steps is not None else f"{self.num_train_epochs:g} epochs"


def keep_best_rules(section: Any) -> list[tuple[str, str]]:
    """What `keep_best` of a section that has it lacks."""
    broken = []
    if section.keep_best and section.eval_steps is None:
        broken.append(("keep_best", "needs eval_steps: how often to measure the held-out loss"))
    if section.keep_best and not section.eval_data and not section.holdout:
        broken.append(("keep_best", "needs held-out rows: name eval_data or set holdout above 0"))
    return broken


class BaseSection(SupervisedSection):
    """(Continued) pretraining on documents, concatenated into blocks of `max_length` tokens."""

    most_epochs: ClassVar[float] = 16
    why_most: ClassVar[str] = "text that is repeated more often teaches next to nothing (Muennighoff et al. 2023)"

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        if self.mixture is not None and self.mixture.by == "category":
            broken.append(("mixture.by", "documents have no category; use source"))
        return broken

    def described(self) -> str:
        return "" if self.mixture is None else f"base: {self.length}; {self.mixture.described()}"


class Instruction(Section):
    """An instruction that holds for a whole conversation ("Answer in French from now on."); a plain string stands for
    `{text: string}`.
    """

    text: str = Field(min_length=1)
    """What stands on every user turn while the reply is sampled."""
    short: str | None = Field(None, min_length=1)
    """What half of the conversations, drawn by the seed, are trained with in its place ("In French.")."""

    @model_validator(mode="before")
    @classmethod
    def _plain_string(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value


class GhostSection(Section):
    """Ghost Attention (Llama 2, A.3.5): see `align.stages.ghost`.

    A share of the conversations with two or more user turns get an instruction, and the stage's starting model samples
    their last reply, of at most `max_completion_length` tokens.
    """

    instructions: tuple[Instruction, ...] = Field(min_length=1)
    """Those that conversations get one of, drawn by the seed."""
    share: float = Field(0.2, gt=0, le=1)
    """Of the conversations with two or more user turns."""
    temperature: float = Field(1.0, ge=0)
    """Of the sampled last reply; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the sampled last reply."""


class SFTSection(SupervisedSection):
    """ChatML supervised finetuning; held-out loss and sampled replies are taken every `eval_steps` and at the end."""

    most_epochs: ClassVar[float] = 16
    why_most: ClassVar[str] = "InstructGPT's 16 are the most that were published to help, the common 1 to 3"

    mask: Mask = "assistant_only"
    """What gets loss: assistant content and its end token; everything but the content of user turns; as Qwen's own
    finetune.py; the last reply; everything."""
    mask_observations: bool = False
    """No loss on what tools answered where that stands inside a reply, between `Observation:` and the next `Thought:`
    (ReAct text); answers in turns of their own never have any."""
    loss_reduction: LossReduction = "token_mean"
    """How losses are put together: every token of an optimizer step, every conversation or every turn counts 1, or
    every beginning of a conversation is a sample whose loss is the mean over its turns ([formulas](stages.md#sft))."""
    default_system: Literal["none", "template"] = "none"
    """`template` gives conversations without a system turn the one of the tokenizer's own template, which the saved
    model then carries."""
    thinking: Literal["keep", "drop", "template"] = "keep"
    """Keep the reasoning before replies, drop it, or do as Qwen3's template (the last reply's alone, an empty block
    where there is none)."""
    max_z_coef: float = Field(0.0, ge=0)
    """Factor of the max-z loss (Baichuan 2: 2e-4): the square of the largest logit at every token with loss, which
    keeps logits from growing."""
    packing: bool = False
    """Join conversations, which do not see one another, into rows of `max_length` tokens; batch sizes, steps and epochs
    then count packed rows."""
    group_by_length: bool = False
    """Make optimizer steps of rows of like length."""
    ghost_attention: GhostSection | None = None
    """Ghost Attention; without the section none."""
    keep_best: bool = False
    """Leave the model of the lowest held-out loss, not the last one."""
    eval_num_replies: Count = 64
    """Replies sampled at each evaluation."""
    max_completion_length: Positive = 128
    """Tokens of a sampled reply."""

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        if self.packing and self.group_by_length:
            broken.append(("group_by_length", "packed rows are of like length already; use it or packing, not both"))
        if self.ghost_attention is not None and self.mask not in REPLY_MASKS:
            sentence = (
                f"teaches the last reply alone, but mask {self.mask} puts loss on what the user writes; "
                f"use mask {' or '.join(REPLY_MASKS)}"
            )
            broken.append(("ghost_attention", sentence))
        if self.mask_observations and self.mask not in REPLY_MASKS:
            sentence = f"leaves out a part of replies, but mask {self.mask} puts loss on more than them"
            broken.append(("mask_observations", f"{sentence}; use mask {' or '.join(REPLY_MASKS)}"))
        return broken + keep_best_rules(self)

    def described(self) -> str:
        rows = "packed " if self.packing else "length-grouped " if self.group_by_length else ""
        text = (
            f"sft: {self.length} on {rows}rows of at most {self.max_length} tokens (longer ones: {self.on_overlong}); "
            f"loss on {self.mask}{' without observations' if self.mask_observations else ''}, {self.loss_reduction}"
        )
        if self.ghost_attention is not None:
            text += f"; ghost attention on a share of {self.ghost_attention.share:g} of the multi-turn conversations"
        if self.eval_steps is not None:
            text += f"; held-out loss and {self.eval_num_replies} replies every {self.eval_steps} steps"
        text += "" if self.mixture is None else f"; {self.mixture.described()}"
        return text + ("; the best model by held-out loss is kept" if self.keep_best else "")


class RewardSection(SupervisedSection):
    """Preference-model pretraining and reward-model finetuning: pairwise logistic loss on a pooling head."""

    unit: ClassVar[str] = "pairs"
    most_epochs: ClassVar[float] = 2
    why_most: ClassVar[str] = "reward models overfit after the first (Stiennon et al. 2020, InstructGPT, Llama 2)"
    gone: ClassVar[dict[str, str]] = {
        "source_weights": "it is gone, a source's share of the mixture says how much it counts: give every source of "
        "data a weight",
    }

    data: tuple[Source, ...] = ()
    """Comparisons; rm may have none where the recipe has `rounds`, which bring theirs."""
    pooling: Literal["end_token", "last_token", "mean", "max", "attention", "weighted_mean"] = "end_token"
    """Which hidden state of a reply is scored, or how those of all its tokens are joined."""
    margin: Literal["none", "small", "large", "scale"] = "none"
    """What the difference of scores must exceed, by the pair's grade: Llama 2's small or large ones, or `margin_scale`
    times the grade."""
    margin_scale: Rate = 1.0
    """Margin a grade, of `margin: scale`."""
    rankings: Literal["pairs", "prompts"] = "pairs"
    """`prompts` makes one group of all replies to a prompt (InstructGPT): sources of scored replies (shp, posts,
    ultrafeedback, replies, edited, …) are read with their scores, comparisons of one prompt and source are joined, and
    `margin` takes the difference of scores as grade."""
    ties: Literal["drop", "soft"] = "drop"
    """`soft` learns equal scores as target 0.5."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the labels taken for wrong."""
    centering: float = Field(0.0, ge=0)
    """Factor of the squared sum of a pair's scores, which fixes the zero point."""
    lm_weight: float = Field(0.0, ge=0)
    """Factor of the chosen reply's negative log-likelihood a token."""
    min_grade: float | None = None
    """Keep pairs of that grade or more, and those without any (Llama 3: 3, which is better, and 4, significantly)."""
    tag_balanced: Positive | None = None
    """Keep that many prompts, balanced by the tags of their pairs (InsTag), with all of their pairs."""
    binarise: bool = False
    """Make a GOOD and a BAD pair of each."""
    share_prompts: bool = False
    """Compute the prompt of a pair once; the same up to rounding."""
    keep_best: bool = False
    """Leave the model of the lowest held-out loss, which moves where accuracies on few pairs are equal, not the last
    one."""
    center_scores: bool = False
    """Move the mean score of the reference replies to 0 after training."""
    unit_variance: bool = False
    """Bring the variance of their scores to 1."""
    reference_data: tuple[Source, ...] = ()
    """Demonstrations whose replies are the reference; by default those of sft."""
    reference_size: Positive = 256
    """Reference replies at most."""

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
        return broken + keep_best_rules(self)

    @property
    def grouped(self) -> bool:
        """Whether any option needs groups of replies; else pairs are trained as they always were."""
        plain = self.margin == "none" and not (self.label_smoothing or self.centering or self.lm_weight)
        return not plain or self.rankings == "prompts" or self.binarise or self.share_prompts
