"""Pieces that several sections have: sources and optimizers; and the sizes of the embedded world."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from align.recipe.section import Count, LocalPath, Positive, Rate, Section

Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "lion_8bit"]


class Source(Section):
    """Where records come from.

    `path` is a file (relative to `data_root` when that is set, else to the working folder), or
    `tinyworld:NAME` for one of the sets of the embedded world. A plain string in a list of sources stands for
    `{path: string}`, one that starts with `hub:` for `{hub: string}`.

    `hub` stands instead of `path`: a dataset's id (`org/name`) or a folder of data files, read through `datasets`;
    `hub_split`, `hub_config` and `revision` say which part of it, `streaming: false` downloads it before it is read.

    `split` cuts a text file into documents (`lines`, `paragraphs`; without it a file is one document). `weight` is the
    source's share of the mixture, see `data_formats.mixing`; either all sources of a list have one or none.
    `max_row_mb` bounds what is read of a file at once, in MiB: a line, an element of a list, a document.
    """

    mixed: ClassVar[bool] = True

    path: LocalPath = ""
    hub: LocalPath | None = Field(None, min_length=1)
    hub_split: str = Field("train", min_length=1)
    hub_config: str | None = None
    revision: str | None = None
    streaming: bool = True
    format: str = "auto"
    limit: Positive | None = None
    category: str | None = None
    split: str | None = None
    weight: Rate | None = None
    max_row_mb: Positive = 64

    @model_validator(mode="before")
    @classmethod
    def _plain_string(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return {"hub": value.removeprefix("hub:")} if value.startswith("hub:") else {"path": value}

    @property
    def name(self) -> str:
        """The source as reports name it: its path, or `hub:` and the dataset's id."""
        return self.path if self.hub is None else f"hub:{self.hub}"

    def rules(self) -> list[tuple[str, str]]:
        if not self.path and self.hub is None:
            return [("", "needs 'path' (a file) or 'hub' (a dataset's id, org/name)")]
        if self.path.startswith("hub:"):
            return [("path", f"is a file; for a dataset of the hub write hub: {self.path.removeprefix('hub:')}")]
        if self.hub is None:
            named = ("hub_split", "hub_config", "revision", "streaming")
            changed = [name for name in named if getattr(self, name) != type(self).model_fields[name].default]
            return [(name, "says how a dataset of the hub is read, but this source is a file") for name in changed]
        if self.path:
            return [("hub", "a source is either a file ('path') or a dataset of the hub; remove one of them")]
        if self.split is not None:
            return [("split", "cuts text files into documents; the split of a dataset is hub_split")]
        if self.max_row_mb != type(self).model_fields["max_row_mb"].default:
            return [("max_row_mb", "bounds the rows of a file, but this source is a dataset of the hub")]
        return []


class OptimSection(Section):
    """Optimizer and schedule of one trained model; names follow transformers' TrainingArguments.

    `optimizer`: `adamw` is torch's; the others are bitsandbytes', with moments in 8 bits, or (`paged`) moved out of a
    full GPU's memory. `lion_8bit` reads the betas (its paper: 0.9 and 0.99) and has no epsilon; its learning rate is
    a third to a tenth of AdamW's.
    """

    learning_rate: Rate
    optimizer: Optimizer = "adamw"
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"] = (
        "constant"
    )
    warmup_steps: Count = 0
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_epsilon: Rate = 1e-8
    max_grad_norm: Rate = 1.0

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            sentence = "'constant' ignores warmup_steps; use lr_scheduler_type=constant_with_warmup or warmup_steps=0"
            broken.append(("lr_scheduler_type", sentence))
        if self.optimizer == "lion_8bit" and self.adam_epsilon != type(self).model_fields["adam_epsilon"].default:
            broken.append(("adam_epsilon", "lion_8bit has no epsilon; remove the key, or take an adamw"))
        return broken


class TinyWorldSection(Section):
    """Sizes of the sets that the embedded world generates (`align/tinyworld`)."""

    documents: Positive
    demonstrations: Positive
    coarse_comparisons: Positive
    comparisons: Positive
    heldout_comparisons: Positive
    prompts: Positive
    eval_prompts: Positive = 300
