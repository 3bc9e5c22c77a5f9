"""The base under an adapter: it never changes, so checkpoints leave it out and only say which one it was."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from align.runs.errors import CheckpointError
from align.runtime.peft_model import is_peft
from align.trainers import sharding

_digests: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def learnt(module: nn.Module) -> list[str] | None:
    """Names of what a module with an adapter trains, which is all that a checkpoint needs; None: everything."""
    if _adapted(module) is None:
        return None
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def base_of(module: nn.Module) -> dict[str, str] | None:
    """`path` and `digest` of the base under an adapter, None without one. Collective where it is sharded."""
    adapted = _adapted(module)
    if adapted is None:
        return None
    config = next(iter(adapted.peft_config.values()))
    return {"path": str(config.base_model_name_or_path or ""), "digest": _digest(adapted)}


def check_base(folder: Path, role: str, module: nn.Module, saved: dict[str, str] | None) -> None:
    """Whether a checkpoint's adapter was trained on the base that it is about to be put on; its path may differ.

    Raises:
        CheckpointError: it was not.
    """
    own = base_of(module)
    if (own and own["digest"]) == (saved and saved["digest"]):
        return
    then, now = (f"on the base {base['path']!r}" if base else "without an adapter" for base in (saved, own))
    same = " (whose weights are others now)" if own and saved and own["path"] == saved["path"] else ""
    raise CheckpointError(
        f"{folder} was written by a run whose {role} is trained {then}{same}, and in this run it is trained {now}: "
        "continue with that, or start anew (--fresh)"
    )


def _adapted(module: nn.Module) -> Any:
    """The peft model, or role of a shared backbone, that `module` is or has as its `backbone`."""
    for found in (module, getattr(module, "backbone", None)):
        if isinstance(found, nn.Module) and is_peft(found):
            return found
    return None


@torch.no_grad()
def _digest(adapted: Any) -> str:
    """Of names, dtypes, shapes and contents of the base's tensors; computed once."""
    from align.models.role_adapters import adapter_parameters

    model = getattr(adapted, "peft_model", adapted)
    if model not in _digests:
        added = {id(parameter) for name in model.peft_config for _, parameter in adapter_parameters(model, name)}
        found = hashlib.sha256()
        for name, parameter in model.get_base_model().named_parameters():
            if id(parameter) not in added:
                found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)} {_content(parameter)}\n".encode())
        _digests[model] = found.hexdigest()
    return _digests[model]


def _content(parameter: Tensor) -> str:
    """Hash of every bit, a tensor at a time in host memory (about 2 GB a second)."""
    whole = sharding.full(parameter.detach()).cpu().contiguous().flatten()
    return hashlib.sha256(whole.view(torch.uint8).numpy()).hexdigest()
