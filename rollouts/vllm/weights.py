"""New weights for a vLLM engine: streamed tensor by tensor, every name accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from rollouts.errors import RolloutError

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def checked(
    named_tensors: Iterable[tuple[str, Tensor]], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    """The same stream; vLLM itself only warns of a name that is missing, and knows no count.

    Args:
        named_tensors: whole tensors under checkpoint names.
        shapes: the shape of each tensor that a whole update has.

    Raises:
        RolloutError: an unknown or repeated name, another shape, or, at the end, a name that did not come.
    """
    waiting = dict(shapes)
    for name, tensor in named_tensors:
        if name not in shapes:
            raise RolloutError(f"weight '{name}' is not one of the engine's model: push the weights of the same model")
        if name not in waiting:
            raise RolloutError(f"weight '{name}' came twice in one update")
        if tuple(tensor.shape) != waiting.pop(name):
            raise RolloutError(f"weight '{name}' is {tuple(tensor.shape)}, expected {shapes[name]}")
        yield name, tensor.detach()
    if waiting:
        raise RolloutError(f"weight '{next(iter(waiting))}' is missing in an update: push every weight of the model")


def abandon_reload(model: nn.Module, config: VllmConfig) -> None:
    """Brings vLLM's module back to where `reload_weights` can start again, after it was broken off in the middle.

    Else the next one fails, or counts tensors of the broken one (0.32). What the weights are then is left open.

    Args:
        model: vLLM's own module, as `apply_model` gives it.
        config: the engine's.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    with set_current_vllm_config(config):
        finalize_layerwise_reload(model, config.model_config)


def repack_for_cpu(model: nn.Module) -> None:
    """What vLLM's `reload_weights` leaves out on a CPU (0.32); call it after each.

    The output layer of a model with tied embeddings computes with a packed copy of them, which stays that of the old
    ones. Experts' weights are packed when an engine starts and never again: a reload puts plain ones in their place.

    Args:
        model: vLLM's own module, as `apply_model` gives it. Does nothing to layers without such copies.
    """
    head = getattr(model, "lm_head", None)
    head = getattr(head, "base_layer", head)
    if hasattr(head, "cpu_linear") and model.config.tie_word_embeddings:
        head.quant_method.process_weights_after_loading(head)
    for layer in model.modules():
        kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
        experts = getattr(kernel, "fused_experts", None)
        if type(experts).__name__.endswith("CPUUnquantizedExperts"):
            experts.process_weights_after_loading(layer)
