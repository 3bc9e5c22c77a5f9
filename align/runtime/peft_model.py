"""Whether a model is PEFT's, and what is inside: asked by what it has, so that PEFT need not be imported."""

from __future__ import annotations

from typing import Any


def is_peft(model: Any) -> bool:
    """Whether `model` is a PEFT model: an adapter around a base, or a role of a shared backbone, which acts as one."""
    return hasattr(model, "peft_config")


def base_of(model: Any) -> Any:
    """The model inside the adapter (a role's: the whole shared backbone's), `model` itself where it has none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
