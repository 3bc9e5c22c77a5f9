"""Widths in bytes: of weights, of what flows between layers, of what the adapters read; from `model` of the recipe."""

from __future__ import annotations

from dataclasses import dataclass

from align.plan.count import Count
from align.recipe.model_section import ModelSection
from align.recipe.section import Section

BLOCK, NESTED_BLOCK = 64, 256  # bitsandbytes: weights that share a scale, and scales that share one


@dataclass(frozen=True, slots=True)
class Precision:
    """How a model computes.

    Attributes:
        weights: bytes of a weight that is not quantised; the residual stream has that width too.
        autocast: matrix products in bfloat16 on copies of float32 weights and inputs.
        quantized: bytes of a linear layer's weight in 4 bits, its scales included; None: as the other weights.
    """

    weights: int
    autocast: bool
    quantized: float | None = None

    @classmethod
    def of(cls, model: ModelSection, *, quantized: bool) -> Precision:
        """That of the recipe's models; base ones are not quantised."""
        weights = 4 if model.dtype == "float32" else 2
        bits = _quantized_bytes(model.quantization) if quantized and model.adapter == "qlora" else None
        return cls(weights, model.mixed_precision == "bf16", bits)

    @property
    def products(self) -> int:
        """Width of a linear layer's result. 4-bit layers give back what they were given."""
        return 2 if self.autocast and self.quantized is None else self.weights

    @property
    def attention(self) -> int:
        """Width of queries, keys, values and result."""
        return 2 if self.autocast else self.weights

    @property
    def adapter_input(self) -> int:
        """Width of what the float32 weights of an adapter multiply."""
        return 2 if self.autocast else 4

    @property
    def adapter_copies(self) -> bool:
        """Whether every adapter makes a copy of its input: peft casts it to the adapter's float32, autocast to
        bfloat16; on 4-bit layers peft leaves the latter alone."""
        if self.quantized is not None and self.autocast:
            return self.weights == 4
        return self.autocast or self.weights == 2

    @property
    def copies_weights(self) -> bool:
        """Whether plain linear layers multiply by a bfloat16 copy."""
        return self.autocast and self.weights == 4

    def bytes_of(self, count: Count, *, head: bool) -> float:
        """All weights of a model, with or without its LM head; only linear layers below it are quantised."""
        linear = count.linear * (self.weights if self.quantized is None else self.quantized)
        return linear + self.weights * (count.whole - count.linear - (0 if head else count.head))


def _quantized_bytes(quantization: Section) -> float:
    scales = 1 / BLOCK + 4 / (BLOCK * NESTED_BLOCK) if quantization.double_quant else 4 / BLOCK
    return 0.5 + scales
