"""New weights for a vLLM engine: every name accounted for, to a server by files, which it reads where they lie, or gets
over HTTP where it does not see them (`rollouts.vllm.delivery`).

The files are in memory (/dev/shm) where there is room, else on disk. The stream is written in pieces of at most `PIECE`
bytes (a larger tensor is a piece of its own), so that there is never a second whole copy of the model in this process.
They stay until the next push: a server that is started again needs them. They go with the engine, and when this process
is killed with the server it owns; a process that is killed while it uses servers given by URL leaves its folder
(align-vllm-*) behind.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rollouts.errors import RolloutError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

PIECE = 64 * 2**20  # bytes
FOLDER_VARIABLE = "ALIGN_VLLM_PUSH_FOLDER"  # where weights are put instead
_MEMORY = Path("/dev/shm")
_ROOM = 1.1  # of the model's size must be free
Entry = tuple[str, tuple[int, ...], str]  # name, shape, and type in the words of safetensors
_KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "int32": "I32"}


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


@dataclass(frozen=True, slots=True)
class Push:
    """Weights that lie in files.

    Attributes:
        version: of the weights.
        folder: where.
        files: name and size in bytes.
        entries: name, shape and type of every tensor in them.
    """

    version: int
    folder: Path
    files: list[list[Any]]
    entries: list[Entry] = field(repr=False)

    def __add__(self, other: Push) -> Push:
        """These and the other's, as the other's version."""
        return Push(other.version, other.folder, self.files + other.files, self.entries + other.entries)

    @property
    def digest(self) -> str:
        """`names_digest` of all."""
        return names_digest(self.entries)

    @property
    def paths(self) -> list[Path]:
        """Of the files."""
        return [self.folder / name for name, _ in self.files]


def private_folder(bytes_needed: int) -> Path:
    """A new folder that only this user may enter, in memory when `bytes_needed` fit."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        base = Path(chosen)
        if not base.is_dir():
            raise RolloutError(f"{FOLDER_VARIABLE} names {chosen}, which is no folder")
    elif _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM * bytes_needed:
        base = _MEMORY
    else:
        base = Path(tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix="align-vllm-", dir=base))  # mode 0700


def write_push(folder: Path, named_tensors: Iterable[tuple[str, Tensor]], version: int, kind: str = "weights") -> Push:
    """Writes the stream to `folder`, in the order it comes. What an earlier push of this kind left there is removed
    first.

    Raises:
        RolloutError: a file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    for path in folder.glob(f"{kind}-*.safetensors"):
        path.unlink(missing_ok=True)
    files: list[list[Any]] = []
    entries: list[Entry] = []
    try:
        for piece in _pieces(named_tensors):
            entries += [(name, tuple(tensor.shape), _kind(tensor)) for name, tensor in piece.items()]
            path = folder / f"{kind}-{version}-{len(files):05d}.safetensors"
            save_file(piece, path)
            files.append([path.name, path.stat().st_size])
    except (OSError, SafetensorError) as error:
        raise RolloutError(
            f"the weights cannot be written to {folder} ({error}): name a folder with room in {FOLDER_VARIABLE}"
        ) from None
    return Push(version, folder, files, entries)


def _pieces(named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Copies on the CPU, at most `PIECE` bytes of them: the source may go on, and safetensors refuses shared memory."""
    piece: dict[str, Tensor] = {}
    size = 0
    for name, tensor in named_tensors:
        if piece and size + tensor.nbytes > PIECE:
            yield piece
            piece, size = {}, 0
        own = tensor.detach().cpu().contiguous()
        piece[name] = own.clone() if own.data_ptr() == tensor.data_ptr() else own
        size += tensor.nbytes
        del tensor, own
    if piece:
        yield piece


def names_digest(entries: Iterable[Entry]) -> str:
    """One short text for a set of them."""
    lines = sorted(f"{name} {list(shape)} {kind}" for name, shape, kind in entries)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _kind(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _KINDS:
        raise RolloutError(f"weights of type {name} cannot be pushed")
    return _KINDS[name]


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
