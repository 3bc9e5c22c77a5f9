"""Shared pieces of the schema: the closed base class and the sections every stage is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
SMALLEST_VOCAB = 300  # of a new model


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values never change after loading.

    Rules between keys are returned by `rules()`, so that the loader can collect those of all sections at once
    (it validates with the context `{"collect_rules": True}`); everyone else gets a ValidationError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def rules(self) -> list[tuple[str, str]]:
        """Broken rules between the keys of this section: (key, sentence)."""
        broken = []
        for name in type(self).model_fields:
            value = getattr(self, name)
            sources = [item for item in value if isinstance(item, Source)] if isinstance(value, tuple) else []
            bare = [at for at, source in enumerate(sources) if source.weight is None]
            if 0 < len(bare) < len(sources):
                sentence = "either all sources of a list have a weight or none has; give this one a weight too"
                broken += [(f"{name}.{at}.weight", sentence) for at in bare]
        return broken

    @model_validator(mode="after")
    def _obeys_rules(self, info: ValidationInfo) -> Self:
        if not (info.context or {}).get("collect_rules"):
            broken = [f"{key}: {sentence}" if key else sentence for key, sentence in self.rules()]
            if broken:
                raise ValueError("; ".join(broken))
        return self


class Source(Section):
    """Where records come from.

    `path` is a file (relative to `data_root` when that is set, else to the working folder), or
    `tinyworld:NAME` for one of the sets of the embedded world. A plain string in a list of sources stands for
    `{path: string}`, one that starts with `hub:` for `{hub: string}`.

    `hub` stands instead of `path`: a dataset's id (`org/name`) or a folder of data files, read through `datasets`;
    `hub_split`, `hub_config` and `revision` say which part of it, `streaming: false` downloads it before it is read.

    `split` cuts a text file into documents (`lines`, `paragraphs`; without it a file is one document). `weight` is the
    source's share of the mixture, see `data_formats.mixing`; either all sources of a list have one or none.
    """

    path: str = ""
    hub: str | None = Field(None, min_length=1)
    hub_split: str = Field("train", min_length=1)
    hub_config: str | None = None
    revision: str | None = None
    streaming: bool = True
    format: str = "auto"
    limit: Positive | None = None
    category: str | None = None
    split: str | None = None
    weight: Rate | None = None

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
        return []


class OptimSection(Section):
    """Optimizer and schedule of one trained model; names follow transformers' TrainingArguments."""

    learning_rate: Rate
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
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            sentence = "'constant' ignores warmup_steps; use lr_scheduler_type=constant_with_warmup or warmup_steps=0"
            return [*super().rules(), ("lr_scheduler_type", sentence)]
        return super().rules()


class Architecture(Section):
    """Shape of a `Qwen2ForCausalLM` made from scratch; its tokenizer is trained on the base stage's documents."""

    vocab_size: Positive = 1024
    hidden_size: Positive = 128
    intermediate_size: Positive = 352
    num_hidden_layers: Positive = 4
    num_attention_heads: Positive = 4
    num_key_value_heads: Positive = 2
    max_position_embeddings: Positive = 512
    tie_word_embeddings: bool = False

    def rules(self) -> list[tuple[str, str]]:
        hidden, heads, groups = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        broken = []
        if self.vocab_size < SMALLEST_VOCAB:
            sentence = (
                f"{self.vocab_size} leaves no room for words, since the 256 bytes and the tokens of ChatML come first; "
                f"use at least {SMALLEST_VOCAB}"
            )
            broken.append(("vocab_size", sentence))
        if hidden % (2 * heads):
            sentence = f"{hidden} must be an even multiple of num_attention_heads ({heads}), for rotary positions"
            broken.append(("hidden_size", sentence))
        if heads % groups:
            broken.append(("num_attention_heads", f"{heads} must be a multiple of num_key_value_heads ({groups})"))
        return broken


class ModelSection(Section):
    """The pretrained model, by folder or hub id (`path`), or the shape of a new one (`architecture`)."""

    path: str | None = None
    revision: str | None = None
    architecture: Architecture | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    mixed_precision: Literal["no", "bf16"] = "no"
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False

    def rules(self) -> list[tuple[str, str]]:
        if (self.path is None) == (self.architecture is None):
            return [("", "needs exactly one of 'path' (a folder or hub id) and 'architecture' (a new tiny model)")]
        return []


class TinyWorldSection(Section):
    """Sizes of the sets that the embedded world generates (`align/tinyworld`)."""

    documents: Positive
    demonstrations: Positive
    coarse_comparisons: Positive
    comparisons: Positive
    heldout_comparisons: Positive
    prompts: Positive
    eval_prompts: Positive = 300
