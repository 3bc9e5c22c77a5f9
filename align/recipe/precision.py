"""Which weights may be trained in which precision: one rule for stages, adapters and modules that are trained whole.

float16 is refused whatever is trained, an adapter's float32 weights too: activations and gradients pass through the
float16 base, and no stage has a loss scale. bfloat16 has 8 bits of mantissa: a weight w does not move by less than
about |w| / 512. Weights trained whole in it are told of, with the cure; modules trained whole beside an adapter, which
could as well be in float32, are refused.
"""

from __future__ import annotations

from align.recipe.adapters import LoraSection

CURE = "model.dtype=float32 with model.mixed_precision=bf16"
BFLOAT16_STEP = 512  # a weight is at most so many times the smallest step that moves it


def precision_rules(adapter: str, lora: LoraSection, dtype: str) -> list[tuple[str, str]]:
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
