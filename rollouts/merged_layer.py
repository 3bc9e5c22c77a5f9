"""One layer of a policy as a merged model would hold it, computed beside the policy: see `rollouts.weights`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rollouts.errors import RolloutError

Gather = Callable[[Tensor], Tensor]


@torch.no_grad()
def merged_layer(named: dict[str, Tensor], adapters: Sequence[nn.Module], gather: Gather) -> list[tuple[str, Tensor]]:
    """The parameters `named` of one base layer with the change of `adapters` (PEFT's layers around it, innermost first)
    added in float32, in their own dtypes."""
    whole = {name: plain(tensor, gather, name) for name, tensor in named.items()}
    dtypes = {name: tensor.dtype for name, tensor in whole.items()}
    device = next(iter(whole.values())).device.type
    with torch.autocast(device, enabled=False):
        stub = _stub({name.rpartition(".")[2]: whole.pop(name) for name in list(whole)})
        for layer in adapters:
            _merge_into(stub, layer, gather)
    return [(name, getattr(stub, name.rpartition(".")[2]).data.to(dtype)) for name, dtype in dtypes.items()]


def plain(tensor: Tensor, gather: Gather, name: str) -> Tensor:
    """`tensor` whole and in a plain format, in the dtype it computes as."""
    kind = type(tensor).__name__
    if kind == "Int8Params":
        raise RolloutError(f"{name} is held in 8 bits, which cannot be pushed to an engine: load the policy in 4 bits")
    if kind != "Params4bit":
        return gather(tensor.detach())
    import bitsandbytes.functional as quantized

    data, state = tensor.data, tensor.quant_state
    if getattr(state, "packing_format_for_cpu", False):  # as bitsandbytes lays weights out after a forward in eval mode
        data, state = quantized._convert_weight_packed_for_cpu_inverse(data, state)
    return quantized.dequantize_4bit(data, state).to(state.dtype)


def _stub(tensors: dict[str, Tensor]) -> nn.Module:
    """A bare layer with float32 copies (float64 stays)."""
    stub = nn.Module()
    for name in list(tensors):
        tensor = tensors.pop(name)
        wide = tensor.clone() if tensor.dtype == torch.float64 else tensor.to(torch.float32, copy=True)
        stub.register_parameter(name, nn.Parameter(wide, requires_grad=False))
        del tensor, wide
    return stub


def _merge_into(stub: nn.Module, layer: nn.Module, gather: Gather) -> None:
    """PEFT's own merge, by a copy of `layer` that holds the adapter whole, in the stub's dtype, around the stub."""
    from peft.tuners.lora.layer import Linear

    inside = {id(parameter) for parameter in layer.base_layer.parameters()}
    dtype = next(stub.parameters()).dtype
    memo: dict[int, Any] = {id(layer.base_layer): stub}
    for parameter in layer.parameters():
        if id(parameter) not in inside:
            memo[id(parameter)] = nn.Parameter(gather(parameter.detach()).to(dtype), requires_grad=False)
    twin = copy.deepcopy(layer, memo)
    merge = Linear.merge if type(layer).__name__ == "Linear4bit" else type(layer).merge  # that one would quantise again
    merge(twin)
