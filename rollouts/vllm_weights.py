"""New weights for a vLLM engine: streamed tensor by tensor, every name accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from rollouts.errors import RolloutError


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


def expected_shapes(model: nn.Module, *, merge: bool = True) -> dict[str, tuple[int, ...]]:
    """Checkpoint names and shapes of a whole update for `model`."""
    try:
        from rollouts.weights import checkpoint_names
    except ImportError:
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        tied = (base._tied_weights_keys or ()) if base.config.tie_word_embeddings else ()
        shapes = {name: tuple(tensor.shape) for name, tensor in base.state_dict().items() if name not in tied}
        return {name.replace(".base_layer.", "."): shape for name, shape in shapes.items() if ".lora_" not in name}
    return checkpoint_names(model, merge=merge)


def repack_tied_head(model: nn.Module) -> None:
    """What vLLM's `reload_weights` leaves out on a CPU (0.32).

    The output layer of a model with tied embeddings computes with a packed copy of them, and else goes on with the copy
    of the old ones.

    Args:
        model: vLLM's own module, as `apply_model` gives it. Does nothing where there is no such copy.
    """
    head = getattr(model, "lm_head", None)
    head = getattr(head, "base_layer", head)
    if hasattr(head, "cpu_linear") and model.config.tie_word_embeddings:
        head.quant_method.process_weights_after_loading(head)
