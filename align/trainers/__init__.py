"""Trainers. Names are imported lazily, so that importing the package does not import torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "SFTTrainer": "sft",
    "RewardTrainer": "reward",
    "DPOTrainer": "dpo",
    "PPOTrainer": "ppo.trainer",
    "SupervisedTrainer": "supervised",
}
_HOMES |= dict.fromkeys(("Samples", "Scores", "TokenBatch", "Experience"), "ppo.types")
__all__ = ["DPOTrainer", "Experience", "PPOTrainer", "RewardTrainer", "SFTTrainer", "Samples", "Scores"]
__all__ += ["SupervisedTrainer", "TokenBatch"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
