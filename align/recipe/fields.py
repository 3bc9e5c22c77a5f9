"""Pieces that several sections have: sources and optimizers; and the sizes of the embedded world."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from align.recipe.section import Count, LocalPath, Positive, Rate, Section

Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "lion_8bit"]


class Source(Section):
    """Where records come from: a file (`path`) or a dataset (`hub`).

    A plain string in a list of sources stands for `{path: string}`, one that starts with `hub:` for `{hub: string}`.
    """

    mixed: ClassVar[bool] = True

    path: LocalPath = ""
    """File, relative to `data_root` where that is set, else to the working folder; or `tinyworld:NAME`, a set of the
    embedded world."""
    hub: LocalPath | None = Field(None, min_length=1)
    """In place of `path`: id of a dataset (`org/name`) or a folder of data files, read through `datasets`."""
    hub_split: str = Field("train", min_length=1)
    """Which split of the dataset."""
    hub_config: str | None = None
    """Which configuration of the dataset."""
    revision: str | None = None
    """Which branch, tag or commit of the dataset."""
    streaming: bool = True
    """Read rows as they are fetched; false downloads the dataset first."""
    format: str = "auto"
    """Shape of the rows, `auto` finds it by the first one: [the table](formats.md)."""
    limit: Positive | None = None
    """Records that are read at most."""
    category: str | None = None
    """Category that all of its records get, in place of their own."""
    split: str | None = None
    """Cuts a text file into documents (`lines`, `paragraphs`); without it a file is one document."""
    weight: Rate | None = None
    """Share of the mixture, drawn without repeating a record; either all sources of a list have one, or none."""
    epochs: float | None = Field(None, gt=0, le=100)
    """How often each record is trained on, 1 where another source of the list has it: 2.5 is twice, and a random half a
    third time; of supervised stages' `data`, without `max_steps`."""
    max_row_mb: Positive = 64
    """MiB of a file read at once, at most: of a line, an element of a list, a document."""

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
        if self.weight is not None and self.epochs is not None:
            return [("epochs", "says how much of the source there is, and so does weight; remove one of the two")]
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
    """Optimizer and schedule of one trained model; names follow transformers' TrainingArguments."""

    learning_rate: Rate
    """Peak learning rate; `lion_8bit` wants a third to a tenth of AdamW's."""
    optimizer: Optimizer = "adamw"
    """`adamw` is torch's; the others are bitsandbytes', with moments in 8 bits or (`paged`) moved out of a full GPU's
    memory."""
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"] = (
        "constant"
    )
    """How the learning rate changes after the warm-up."""
    warmup_steps: Count = 0
    """Optimizer steps in which the learning rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment, of Lion's too."""
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the second moment, of Lion's too (its paper: 0.99)."""
    adam_epsilon: Rate = 1e-8
    """Added to the root of the second moment; Lion has none."""
    max_grad_norm: Rate = 1.0
    """Norm that gradients are clipped to."""

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
    """Documents of `base`."""
    demonstrations: Positive
    """Demonstrations of `sft`."""
    coarse_comparisons: Positive
    """Comparisons of `pmp`."""
    comparisons: Positive
    """Comparisons of `rm`."""
    heldout_comparisons: Positive
    """Comparisons that reward models are measured on."""
    prompts: Positive
    """Prompts of `rejection` and `ppo`."""
    eval_prompts: Positive = 300
    """Held-out prompts."""
    seed: Count | None = None
    """Of the world's facts and sets; by default the recipe's."""
