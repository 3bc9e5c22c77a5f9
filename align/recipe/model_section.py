"""The `model` section: the model, how it is trained (all weights, LoRA, QLoRA), and in which precision.

One rule says which weights may be trained in which precision, for stages, adapters and modules that are trained whole:
float16 is refused whatever is trained, an adapter's float32 weights too: activations and gradients pass through the
float16 base, and no stage has a loss scale. bfloat16 has 8 bits of mantissa: a weight w does not move by less than
about |w| / 512. Weights trained whole in it are told of, with the cure; modules trained whole beside an adapter, which
could as well be in float32, are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from align.recipe.section import LocalPath, Positive, Rate, Section

SMALLEST_VOCAB = 300  # of a new model
CURE = "model.dtype=float32 with model.mixed_precision=bf16"
BFLOAT16_STEP = 512  # a weight is at most so many times the smallest step that moves it
Name = Annotated[str, Field(min_length=1)]


def _targets(value: Any) -> str | tuple[str, ...]:
    if value == "all-linear":
        return value
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) and name for name in value):
        shown = f"'{value}'" if isinstance(value, str) else value
        raise ValueError(f"must be 'all-linear' or a list of names like [q_proj, v_proj], not {shown}")
    return tuple(value)


Targets = Annotated[Literal["all-linear"] | tuple[str, ...], PlainValidator(_targets)]


class LoraSection(Section):
    """Low-rank adapters (Hu et al. 2021), as `peft.LoraConfig` has them: W + (alpha / rank) B A."""

    rank: Positive = 16
    """Columns of A and B."""
    alpha: Rate = 32
    """The change is `alpha / rank` times B A."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the adapter's input, in sft alone: reward models and PPO are trained without any."""
    targets: Targets = "all-linear"
    """`all-linear` (every linear layer but the language model's head), or names of modules."""
    rslora: bool = False
    """Divide by the root of the rank in place of the rank."""
    dora: bool = False
    """Train the norms of the columns too."""
    modules_to_save: tuple[Name, ...] = ()
    """Modules that are trained whole and saved with the adapter (`embed_tokens`, `lm_head`)."""

    def rules(self) -> list[tuple[str, str]]:
        named = () if self.targets == "all-linear" else self.targets
        both = sorted(set(named) & set(self.modules_to_save))
        sentence = "is among the targets too; a module is either trained whole or has an adapter, so name it once"
        return [*super().rules(), *(("modules_to_save", f"'{name}' {sentence}") for name in both)]


class QuantizationSection(Section):
    """How qlora stores the frozen base (Dettmers et al. 2023): 4 bits a weight, computed in `compute_dtype`."""

    type: Literal["nf4", "fp4"] = "nf4"
    """Of the 4 bits."""
    double_quant: bool = True
    """Quantise the scales too."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """What a layer computes in."""


class Architecture(Section):
    """Shape of a `Qwen2ForCausalLM` made from scratch; its tokenizer is trained on the base stage's documents."""

    vocab_size: Positive = 1024
    """Tokens, the 256 bytes and those of ChatML included."""
    hidden_size: Positive = 128
    """Width; an even multiple of `num_attention_heads`."""
    intermediate_size: Positive = 352
    """Width of the MLP."""
    num_hidden_layers: Positive = 4
    """Layers."""
    num_attention_heads: Positive = 4
    """Heads of attention; a multiple of `num_key_value_heads`."""
    num_key_value_heads: Positive = 2
    """Heads of keys and values."""
    max_position_embeddings: Positive = 512
    """Tokens of the longest sequence."""
    tie_word_embeddings: bool = False
    """Whether the head's weights are those of the embeddings."""

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


class TokenizerSection(Section):
    """How the model speaks ([families](families.md)); every model of the chain in the same way."""

    template: Literal["chatml", "own", "none"] = "chatml"
    """`chatml` as in the report, whatever the model's own template: it needs ChatML's tokens. `own` is the tokenizer's
    chat template with its end-of-turn token: what a chat model was trained with already. `none` is the raw prompt and
    the completion behind it, for models without turns (TL;DR)."""
    add_chatml: bool = False
    """Give a tokenizer that lacks ChatML's tokens those, and the model embeddings for them, which an adapter trains
    too; a model that has them stays as it is."""
    end_token: Name | None = None
    """Of `none`: the token that ends a completion; default the tokenizer's end-of-sequence token."""

    def rules(self) -> list[tuple[str, str]]:
        broken = []
        if self.add_chatml and self.template != "chatml":
            sentence = f"adds what template {self.template} does not write; set template to chatml, or this to false"
            broken.append(("add_chatml", sentence))
        if self.end_token is not None and self.template != "none":
            known = "ends replies with <|im_end|>" if self.template == "chatml" else "knows its own end-of-turn token"
            broken.append(("end_token", f"is read by template none alone, and template {self.template} {known}"))
        return broken


class ModelSection(Section):
    """The pretrained model, by folder or hub id (`path`), or the shape of a new one (`architecture`)."""

    path: LocalPath | None = None
    """Folder or hub id of a pretrained model."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    architecture: Architecture | None = None
    """In place of `path`: the shape of a new model, which then needs a `base` stage."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """`bf16` computes in bfloat16 whatever the weights are stored in."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Transformers' kernel of attention."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    adapter: Literal["none", "lora", "qlora"] = "none"
    """How it is trained in every stage but base, which trains all weights: `none` is all weights, `lora` an adapter,
    `qlora` an adapter on weights quantised to 4 bits."""
    tokenizer: TokenizerSection = TokenizerSection()
    """How the model speaks: ChatML, its own chat template, or no turns at all."""
    lora: LoraSection = LoraSection()
    """Shape of the adapter."""
    quantization: QuantizationSection = QuantizationSection()
    """How qlora stores the frozen weights."""

    def without_adapter(self) -> ModelSection:
        """The same model with all of its weights trained."""
        plain = {"adapter": "none", "lora": LoraSection(), "quantization": QuantizationSection()}
        return self.model_copy(update=plain)

    @property
    def float32_words(self) -> str:
        """The keys that make a model that computes in bfloat16 one that computes in float32, empty where none is
        needed."""
        kept = {"dtype": "float32", "mixed_precision": "no"}
        return " ".join(f"model.{name}={value}" for name, value in kept.items() if getattr(self, name).startswith("bf"))

    def rules(self) -> list[tuple[str, str]]:
        broken = _adapter_rules(self.adapter, self.lora, self.quantization)
        broken += _precision_rules(self.adapter, self.lora, self.dtype)
        if (self.path is None) == (self.architecture is None):
            sentence = "needs exactly one of 'path' (a folder or hub id) and 'architecture' (a new tiny model)"
            return [("", sentence), *broken]
        if self.architecture is not None and self.tokenizer != TokenizerSection():
            broken.append(("tokenizer", "is that of a pretrained model; a new one (model.architecture) speaks ChatML"))
        return broken


def _adapter_rules(adapter: str, lora: LoraSection, quantization: QuantizationSection) -> list[tuple[str, str]]:
    """Broken rules between `model.adapter` and the keys that belong to it: (key below `model`, sentence)."""
    broken = []
    for name in _changed(lora) if adapter == "none" else ():
        sentence = "shapes an adapter, but model.adapter is none; set it to lora or qlora, or remove the key"
        broken.append((f"lora.{name}", sentence))
    for name in _changed(quantization) if adapter != "qlora" else ():
        sentence = f"is read by qlora alone, but model.adapter is {adapter}; set it to qlora, or remove the key"
        broken.append((f"quantization.{name}", sentence))
    return broken


def _changed(section: Section) -> list[str]:
    return [name for name, field in type(section).model_fields.items() if getattr(section, name) != field.default]


def _precision_rules(adapter: str, lora: LoraSection, dtype: str) -> list[tuple[str, str]]:
    """Broken rules between `model.dtype` and what is trained: (key below `model`, sentence)."""
    broken = []
    if dtype == "float16":
        use = "use bfloat16 or float32" if adapter != "none" else f"use {CURE}"
        broken.append(("dtype", f"float16 overflows in training without a loss scale, which no stage has; {use}"))
    if adapter != "none" and lora.modules_to_save and dtype == "bfloat16":
        sentence = "whole modules are trained in model.dtype, and bfloat16 rounds small updates away; set that to"
        broken.append(("lora.modules_to_save", f"{sentence} float32 (beside which mixed_precision: bf16 is fine)"))
    return broken


def rounded_away(learning_rate: float) -> str:
    """What becomes of a learning rate in bfloat16 weights, in words."""
    largest = f"{learning_rate * BFLOAT16_STEP:.1g}"
    return (
        f"all weights are trained in bfloat16, which rounds a step of learning_rate {learning_rate:g} away in every "
        f"weight larger than about {largest}; use {CURE} (or train an adapter, whose weights are float32)"
    )
