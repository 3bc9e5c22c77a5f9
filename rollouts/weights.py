"""A policy's weights as an engine with weights of its own wants them: what `save_pretrained` of the merged model would
name and hold, one tensor at a time, nothing of the policy changed.

- Of a PEFT model (LoRA, rsLoRA, DoRA, `modules_to_save`, trained rows) each adapted layer is merged on its own: PEFT's
  own `merge` runs on a copy of that layer alone, in float32, and the result is cast to the base's dtype. A 4-bit base
  (bitsandbytes) is dequantised for the while, and never merged into 4 bits.
- Modules that hold a checkpoint's tensors fused (the experts of Qwen3-MoE) are taken apart by transformers' own table.
- Sharded parameters are gathered one by one (`gather`); then all ranks must read the stream to its end.

Memory: beside the policy there is the tensor that was yielded last, and of an adapted layer about three float32 copies
of its matrix while it is merged (base, change, sum). The consumer copies what it keeps: tensors that needed no work are
the parameters themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightConverter, revert_weight_conversion

from align.runtime.peft_model import base_of, is_peft
from rollouts.errors import RolloutError
from rollouts.merged_layer import Gather, merged_layer, plain


@dataclass(frozen=True, slots=True)
class _Source:
    """Tensors that are read together: one, or all of an adapted layer. `named` has the model's own names."""

    named: dict[str, Tensor]
    adapters: tuple[nn.Module, ...] = ()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def checkpoint_tensors(
    model: nn.Module, gather: Gather = _as_it_is, *, merge: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Checkpoint names and whole tensors of `model`, tied ones once.

    Args:
        model: a causal LM of transformers or a PEFT model around one, not wrapped by DDP.
        gather: makes a sharded tensor whole; collective where it is.
        merge: add the active adapter's change; else the base alone (`modules_to_save` are then the original ones).

    Raises:
        RolloutError: adapters that cannot be merged a layer at a time, 8-bit weights, or an architecture whose
            checkpoint joins several tensors of the module to one.
    """
    base = _base_of(model)
    converts = _converts(base)
    for source in _once(_sources(base, "", merge)):
        pieces = _read(source, gather)
        while pieces:
            name, tensor = pieces.pop(0)
            found = list(revert_weight_conversion(base, {name: tensor}).items()) if converts else [(name, tensor)]
            del tensor
            while found:
                yield found.pop(0)


def checkpoint_names(model: nn.Module, *, merge: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what `checkpoint_tensors` yields, without reading a tensor or asking another rank."""
    base = _base_of(model)
    converts = _converts(base)
    shapes: dict[str, tuple[int, ...]] = {}
    for source in _once(_sources(base, "", merge)):
        for name, tensor in source.named.items():
            hollow = {name: torch.empty(_shape(tensor), device="meta")}
            found = revert_weight_conversion(base, hollow) if converts else hollow
            shapes |= {key: tuple(piece.shape) for key, piece in found.items()}
    return shapes


def checkpoint_bytes(model: nn.Module) -> int:
    """Bytes of what `checkpoint_tensors` yields, 4-bit weights in the dtype they compute as; reads no tensor."""
    tensors = [tensor for source in _once(_sources(_base_of(model), "", True)) for tensor in source.named.values()]
    dtypes = [getattr(getattr(tensor, "quant_state", tensor), "dtype", tensor.dtype) for tensor in tensors]
    return sum(_shape(tensor).numel() * dtype.itemsize for tensor, dtype in zip(tensors, dtypes, strict=True))


def adapter_tensors(
    model: nn.Module, gather: Gather = _as_it_is
) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """The active adapter alone, in PEFT's file format: what `adapter_config.json` says, and names and whole tensors.

    Raises:
        RolloutError: not a PEFT model, or one with several active adapters.
    """
    from peft import get_peft_model_state_dict

    if not is_peft(model):
        raise RolloutError(f"{type(model).__name__} has no adapter: push its whole weights (adapters: merge)")
    if len(model.active_adapters) != 1:
        raise RolloutError(f"adapters {model.active_adapters} are active at once: push them merged (adapters: merge)")
    name = model.active_adapters[0]
    own = {key: parameter.detach() for key, parameter in model.named_parameters(remove_duplicate=False)}
    whole = getattr(model, "peft_model", model)  # a role of a shared backbone holds its adapter alone
    named = get_peft_model_state_dict(whole, state_dict=own, adapter_name=name, save_embedding_layers=False)
    config = {
        key: sorted(value) if isinstance(value, set | frozenset) else value
        for key, value in model.peft_config[name].to_dict().items()
    }
    return json.loads(json.dumps(config, default=str)), ((key, gather(tensor)) for key, tensor in named.items())


def pushes_adapter(model: nn.Module, choice: str, device: str) -> bool:
    """Whether an engine for `model` is to be built to take its adapter alone; else whole merged weights are pushed.

    Args:
        choice: as `VLLMSettings.adapters`. "auto" merges on a CPU, 4-bit bases, and what an engine (vLLM) cannot take
            as an adapter: DoRA, `modules_to_save`, biases.
        device: "cpu", "cuda"; "server" of one that merges it there (`rollouts.vllm.low_rank`).

    Raises:
        RolloutError: "adapter" was chosen and this one cannot be taken.
    """
    if choice == "merge" or not is_peft(model):
        return False
    obstacle = _adapter_obstacle(model) or (_merging_obstacle(model) if device == "server" else None)
    if choice == "auto":
        return device != "cpu" and obstacle is None and not is_4bit(model)
    if obstacle is not None:
        raise RolloutError(f"ppo.rollout.vllm.adapters: the engine cannot take {obstacle} as an adapter; choose merge")
    return True


def _adapter_obstacle(model: nn.Module) -> str | None:
    config = model.peft_config[model.active_adapters[0]]
    obstacles = {
        "DoRA": getattr(config, "use_dora", False),
        "modules_to_save": getattr(config, "modules_to_save", None),
        "biases": getattr(config, "bias", "none") != "none" or getattr(config, "lora_bias", False),
        "target_parameters": getattr(config, "target_parameters", None),
        "trainable tokens": getattr(config, "trainable_token_indices", None),
    }
    return next((words for words, found in obstacles.items() if found), None)


def _merging_obstacle(model: nn.Module) -> str | None:
    """What a server cannot merge: it knows weights by their names in a checkpoint, and one rank and scale for all."""
    from peft.tuners.lora.layer import Linear

    config = model.peft_config[model.active_adapters[0]]
    if len(model.active_adapters) > 1 or config.rank_pattern or config.alpha_pattern:
        return "adapters of several ranks or scales"
    base = _base_of(model)
    adapted = [layer for source in _sources(base, "", True) for layer in source.adapters]
    if not all(isinstance(layer, Linear) and not layer.fan_in_fan_out for layer in adapted) or _converts(base):
        return "changes of other than linear layers"
    if checkpoint_names(model).keys() != checkpoint_names(model, merge=False).keys():
        return "a change of one of two tied layers"
    return None


def is_4bit(model: nn.Module) -> bool:
    """Whether the base is held in 4 bits (bitsandbytes)."""
    return any(type(parameter).__name__ == "Params4bit" for parameter in _base_of(model).parameters())


def _base_of(model: nn.Module) -> nn.Module:
    if not is_peft(model):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise RolloutError("prompt tuning has no weights to merge: train with LoRA, or sample with the engine 'hf'")
    return base_of(model)


def _converts(base: nn.Module) -> bool:
    """Whether checkpoints of `base` hold its tensors in another form, each made of one of its own."""
    if not hasattr(base, "config"):
        return False
    table = getattr(base, "_weight_conversions", None)
    if table is None:
        known = get_model_conversion_mapping(base, add_legacy=False)
        table = [entry for entry in known if not isinstance(entry, PrefixChange)]
    for entry in table or ():
        if isinstance(entry, WeightConverter) and len(entry.reverse_transform().source_patterns) > 1:
            raise RolloutError(
                f"checkpoints of {type(base).__name__} join several of its tensors to one, which cannot be pushed one "
                "by one: sample with the engine 'hf'"
            )
    return bool(table)


def _once(sources: Iterator[_Source]) -> Iterator[_Source]:
    """Parameters that two modules share come once, unless an adapter makes them differ."""
    seen: set[int] = set()
    for source in sources:
        keys = set() if source.adapters else {id(tensor) for tensor in source.named.values()}
        if not keys & seen:
            yield source
        seen |= keys


def _sources(module: nn.Module, prefix: str, merge: bool) -> Iterator[_Source]:
    """What the layers of `module` hold, under the names they have without adapters."""
    if hasattr(module, "base_layer"):
        adapters, base = _adapters(module, prefix)
        if merge and adapters:
            named = {f"{prefix}{name}": tensor for name, tensor in base.named_parameters()}
            yield _Source(named, tuple(adapters))
        else:
            yield from _sources(base, prefix, merge)
        return
    if hasattr(module, "token_adapter"):
        yield from _token_sources(module.token_adapter, prefix, merge)
        return
    if hasattr(module, "original_module"):
        yield from _sources(_in_use(module, prefix, merge), prefix, merge)
        return
    for name, parameter in module.named_parameters(recurse=False):
        yield _Source({f"{prefix}{name}": parameter})
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield _Source({f"{prefix}{name}": buffer})
    for name, child in module.named_children():
        yield from _sources(child, f"{prefix}{name}.", merge)


def _token_sources(rows: Any, prefix: str, merge: bool) -> Iterator[_Source]:
    """Of a layer some of whose rows are trained (`trainable_token_indices`); a tied one is the other's."""
    if rows.tied_adapter is not None:
        return
    in_use = any(name in rows.trainable_tokens_delta for name in rows.active_adapters)
    named = {f"{prefix}{name}": parameter for name, parameter in rows.get_base_layer().named_parameters()}
    yield _Source(named, (rows,) if merge and in_use and not rows.disable_adapters and not rows.merged else ())


def _adapters(module: nn.Module, prefix: str) -> tuple[list[nn.Module], nn.Module]:
    """The layers of PEFT around a base layer that change it now, the innermost first, and the base layer."""
    from peft.tuners.lora import LoraLayer

    found = []
    while hasattr(module, "base_layer"):
        if not isinstance(module, LoraLayer):
            raise RolloutError(
                f"{prefix.rstrip('.')}: adapters of kind {type(module).__name__} cannot be merged a layer at a time; "
                "use LoRA, or sample with the engine 'hf'"
            )
        in_use = any(name in module._all_available_adapter_names() for name in module.active_adapters)
        if in_use and not module.disable_adapters and not module.merged:
            found.insert(0, module)
        module = module.base_layer
    return found, module


def _in_use(module: nn.Module, prefix: str, merge: bool) -> nn.Module:
    """The copy that a module of `modules_to_save` computes with."""
    if not hasattr(module, "modules_to_save"):
        raise RolloutError(
            f"{prefix.rstrip('.')}: {type(module).__name__} cannot be merged a layer at a time; leave it out of the "
            "adapter, or sample with the engine 'hf'"
        )
    active = next((name for name in module.active_adapters if name in module.modules_to_save), None)
    if not merge or module.disable_adapters or active is None:
        return module.original_module
    return module.modules_to_save[active]


def _shape(tensor: Tensor) -> torch.Size:
    state = getattr(tensor, "quant_state", None)
    return tensor.shape if state is None else state.shape


def _read(source: _Source, gather: Gather) -> list[tuple[str, Tensor]]:
    if source.adapters:
        return merged_layer(source.named, source.adapters, gather)
    return [(name, plain(tensor, gather, name)) for name, tensor in source.named.items()]
