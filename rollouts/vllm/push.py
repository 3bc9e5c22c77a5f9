"""Weights as files that servers on the same machine pull: in memory (/dev/shm) where there is room, else on disk.

The stream is written in pieces of at most `PIECE` bytes (a larger tensor is a piece of its own), so that there is never
a second whole copy of the model in this process. The files stay until the next push: a server that is started again
needs them. They go with the engine, and when this process is killed with the server it owns; a process that is killed
while it uses servers given by URL leaves its folder (align-vllm-*) behind.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rollouts.errors import RolloutError

PIECE = 512 * 2**20  # bytes
FOLDER_VARIABLE = "ALIGN_VLLM_PUSH_FOLDER"  # where weights are put instead; servers elsewhere must see it too
_MEMORY = Path("/dev/shm")
_ROOM = 1.1  # of the model's size must be free


@dataclass(frozen=True, slots=True)
class Push:
    """Weights that lie in files.

    Attributes:
        version: of the weights.
        folder: where.
        files: name and size in bytes.
        digest: `names_digest` of all.
    """

    version: int
    folder: Path
    files: list[list[Any]] = field(default_factory=list)
    digest: str = ""


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


def write_push(folder: Path, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> Push:
    """Writes the stream to `folder`, in the order it comes. What an earlier push left there is removed first.

    Raises:
        RolloutError: a file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    remove_push(folder)
    files: list[list[Any]] = []
    entries: list[tuple[str, tuple[int, ...], str]] = []
    try:
        for piece in pieces(_own(named_tensors), PIECE):
            entries += [(name, tuple(tensor.shape), _kind(tensor)) for name, tensor in piece]
            path = folder / f"weights-{version}-{len(files):05d}.safetensors"
            save_file(dict(piece), path)
            files.append([path.name, path.stat().st_size])
    except (OSError, SafetensorError) as error:
        raise RolloutError(
            f"the weights cannot be written to {folder} ({error}): name a folder with room in {FOLDER_VARIABLE}"
        ) from None
    return Push(version, folder, files, names_digest(entries))


def pieces(named_tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[list[tuple[str, Tensor]]]:
    """The stream in lists of at most `limit` bytes each; a larger tensor is a list of its own."""
    piece: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in named_tensors:
        if piece and size + tensor.nbytes > limit:
            yield piece
            piece, size = [], 0
        piece.append((name, tensor))
        size += tensor.nbytes
    if piece:
        yield piece


def _own(named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Copies on the CPU: the source may go on, and tensors that share memory are refused by safetensors."""
    for name, tensor in named_tensors:
        own = tensor.detach().cpu().contiguous()
        yield name, own.clone() if own.data_ptr() == tensor.data_ptr() else own


def remove_push(folder: Path) -> None:
    """Removes the weights' files."""
    for path in folder.glob("weights-*.safetensors"):
        path.unlink(missing_ok=True)


def names_digest(entries: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    """One short text for a set of (name, shape, type in the words of safetensors)."""
    lines = sorted(f"{name} {list(shape)} {kind}" for name, shape, kind in entries)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


_KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "int32": "I32"}


def _kind(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _KINDS:
        raise RolloutError(f"weights of type {name} cannot be pushed")
    return _KINDS[name]
