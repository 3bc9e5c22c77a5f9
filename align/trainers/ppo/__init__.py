"""PPO as parts that own their state. `trainer` builds the parts and holds the seams; no part knows the trainer.

`from align.trainers.ppo import PPOTrainer, make_accelerator`; both are imported when they are asked for, so that a part
can be imported without all others.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"PPOTrainer": "align.trainers.ppo.trainer", "make_accelerator": "align.trainers.sharding"}
__all__ = ["PPOTrainer", "make_accelerator"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
