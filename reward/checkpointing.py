"""Activation checkpointing, by the name that the installed transformers has for it: 5.24 renamed its methods, warns at
the old ones, and will drop them in 6."""

from __future__ import annotations

from typing import Any

from torch import nn


def is_checkpointing(model: nn.Module) -> bool:
    """Whether layers of the model compute their activations again in the backward pass."""
    told = getattr(model, "is_activation_checkpointing", None)  # which wrappers of ours have with every release
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules()) if told is None else told


def enable_checkpointing(model: Any, options: dict[str, Any] | None = None, **more: Any) -> None:
    """Switch it on; `options` are those of `torch.utils.checkpoint.checkpoint`, by default without reentering."""
    renamed = getattr(model, "activation_checkpointing_enable", None)
    (renamed or model.gradient_checkpointing_enable)(options or {"use_reentrant": False}, **more)


def disable_checkpointing(model: Any) -> None:
    """Switch it off."""
    renamed = getattr(model, "activation_checkpointing_disable", None)
    (renamed or model.gradient_checkpointing_disable)()
