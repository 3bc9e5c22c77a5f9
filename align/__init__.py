"""RLHF the way the Qwen report did it: SFT, preference-model pretraining, reward model, PPO with a critic.

`from align import SFTTrainer, RewardTrainer, PPOTrainer, PPOConfig, load_recipe` works; nothing heavy is imported
before its use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.recipe import load_recipe
    from align.recipe.ppo import PPOConfig
    from align.trainers.ppo import PPOTrainer
    from align.trainers.reward import RewardTrainer
    from align.trainers.sft import SFTTrainer

__version__ = "0.1.0"
__all__ = ["PPOConfig", "PPOTrainer", "RewardTrainer", "SFTTrainer", "load_recipe"]

_HOMES = {
    "PPOConfig": "align.recipe.ppo",
    "PPOTrainer": "align.trainers.ppo",
    "RewardTrainer": "align.trainers.reward",
    "SFTTrainer": "align.trainers.sft",
    "load_recipe": "align.recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'align' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
