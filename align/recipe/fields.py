"""Shared pieces of the schema: the closed base class and the sections every stage is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Source(Section):
    """Where records come from.

    `path` is a file (relative to `data_root` when that is set, else to the working folder), or
    `tinyworld:NAME` for one of the sets of the embedded world.
    """

    path: str
    format: str = "auto"
    limit: Positive | None = None
    category: str | None = None


class OptimSection(Section):
    """Optimizer and schedule of one trained model; names follow transformers' TrainingArguments."""

    learning_rate: Rate
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"] = "constant"
    warmup_steps: Count = 0
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_epsilon: Rate = 1e-8
    max_grad_norm: Rate = 1.0


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


class TinyWorldSection(Section):
    """Sizes of the sets that the embedded world generates (`align/tinyworld`)."""

    documents: Positive
    demonstrations: Positive
    coarse_comparisons: Positive
    comparisons: Positive
    heldout_comparisons: Positive
    prompts: Positive
    eval_prompts: Positive = 300
    sampled_share: Share = 0.6
