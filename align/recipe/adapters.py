"""LoRA and QLoRA in the recipe: `model.lora`, `model.quantization`, and the rules between them and `model.adapter`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from align.recipe.section import Positive, Rate, Section

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
    """Low-rank adapters (Hu et al. 2021), as `peft.LoraConfig` has them: W + (alpha / rank) B A.

    `targets`: `all-linear` (every linear layer but the language model's head), or the names of modules. `rslora`
    divides by the root of the rank in place of the rank. `dora` trains the columns' norms too. `modules_to_save` are
    modules that are trained whole and saved with the adapter (`embed_tokens`, `lm_head`). `dropout` acts in sft alone:
    reward models and PPO are trained without any.
    """

    rank: Positive = 16
    alpha: Rate = 32
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Targets = "all-linear"
    rslora: bool = False
    dora: bool = False
    modules_to_save: tuple[Name, ...] = ()

    def rules(self) -> list[tuple[str, str]]:
        named = () if self.targets == "all-linear" else self.targets
        both = sorted(set(named) & set(self.modules_to_save))
        sentence = "is among the targets too; a module is either trained whole or has an adapter, so name it once"
        return [*super().rules(), *(("modules_to_save", f"'{name}' {sentence}") for name in both)]


class QuantizationSection(Section):
    """How qlora stores the frozen base (Dettmers et al. 2023): 4 bits a weight, computed in `compute_dtype`."""

    type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"


def adapter_rules(adapter: str, lora: LoraSection, quantization: QuantizationSection) -> list[tuple[str, str]]:
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
