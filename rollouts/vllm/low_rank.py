"""A LoRA adapter on its way to a server: the change of each weight as two thin matrices and a number, which the server
adds to the base weights that it has (Hu et al. 2021, section 4.1: W + s·B·A).

What is sampled from is the merged model, at its speed, whatever the adapter; what goes over is the adapter. The sum is
made as PEFT's merge makes it: in float32, and rounded to the base's dtype once.

Names in a push: of the weight NAME, `NAME.lora_A` [rank, in], `NAME.lora_B` [out, rank] and `NAME.lora_scale` [].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rollouts.errors import RolloutError

PREFIX = "base_model.model."  # of PEFT's names
A, B, SCALE = ".lora_A", ".lora_B", ".lora_scale"


def is_change(name: str) -> bool:
    """Whether a name in a push is of a change, and not of a weight."""
    return name.endswith((A, B, SCALE))


def changes(
    config: Mapping[str, Any], named_tensors: Iterable[tuple[str, Tensor]], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    """An adapter under the names of a push.

    Args:
        config: the content of PEFT's `adapter_config.json`; one rank and one scale for all layers.
        named_tensors: what PEFT's `adapter_model.safetensors` holds.
        shapes: of the base's weights.

    Raises:
        RolloutError: a tensor that is no change of one of these, or that came alone.
    """
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    halves: dict[str, int] = {}
    for name, tensor in named_tensors:
        module, _, end = name.removeprefix(PREFIX).rpartition(".lora_")
        weight, part = f"{module}.weight", {"A.weight": A, "B.weight": B}.get(end)
        out, into = shapes.get(weight, (0, 0))
        if part is None or tuple(tensor.shape) != ((rank, into) if part == A else (out, rank)):
            raise RolloutError(f"'{name}' {tuple(tensor.shape)} is no change of a weight of the engine's model")
        halves[weight] = halves.get(weight, 0) + 1
        yield weight + part, tensor
    if alone := next((weight for weight, count in halves.items() if count != 2), None):
        raise RolloutError(f"of the change of '{alone}' a half is missing")
    for weight in halves:
        yield weight + SCALE, torch.tensor(scale)


def changed(name: str, weight: Tensor, changes: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """The weight with its change, worked out on `device`; itself, where it has none."""
    if name + A not in changes:
        return weight
    kind = torch.float64 if weight.dtype == torch.float64 else torch.float32
    low, high = (changes[name + part].to(device, kind) for part in (A, B))
    scale = changes[name + SCALE].item()
    return (weight.to(device, kind) + (high @ low) * scale).to(weight.dtype)
