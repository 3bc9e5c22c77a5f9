"""RLHF the way the Qwen report did it: SFT, preference-model pretraining, reward model, PPO with a critic.

`from align import SFTTrainer, RewardTrainer, PPOTrainer, PPOConfig, load_recipe` works, and so do `Critic`, `Prompt`,
`FunctionReward` and `load_tokenizer`, for what these are given. Nothing heavy is imported before its use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.models.critic import Critic
    from align.models.tokenizer import load_tokenizer
    from align.recipe import load_recipe
    from align.recipe.ppo_section import PPOConfig
    from align.trainers.ppo import PPOTrainer
    from align.trainers.reward import RewardTrainer
    from align.trainers.sft import SFTTrainer
    from data_formats.records import Prompt
    from reward.sources import FunctionReward

__version__ = "0.1.0"
__all__ = [
    "Critic",
    "FunctionReward",
    "PPOConfig",
    "PPOTrainer",
    "Prompt",
    "RewardTrainer",
    "SFTTrainer",
    "load_recipe",
    "load_tokenizer",
]

_HOMES = {
    "Critic": "align.models.critic",
    "FunctionReward": "reward.sources",
    "PPOConfig": "align.recipe.ppo_section",
    "PPOTrainer": "align.trainers.ppo",
    "Prompt": "data_formats.records",
    "RewardTrainer": "align.trainers.reward",
    "SFTTrainer": "align.trainers.sft",
    "load_recipe": "align.recipe",
    "load_tokenizer": "align.models.tokenizer",
}


def _require_own_packages() -> None:
    """A user's `reward.py` would be imported in place of ours and end in a traceback far from its cause."""
    from align.runtime.errors import ShadowedPackageError
    from align.runtime.packages import require_own_packages

    try:
        require_own_packages(Path(__file__).resolve().parent.parent)
    except ShadowedPackageError as error:
        # `python -m align.ppo`, before Python has found the module, and the command `align`: no traceback
        if sys.argv and (sys.argv[0] == "-m" or Path(sys.argv[0]).stem == "align"):
            sys.exit(f"error: {error}")
        raise


_require_own_packages()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'align' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
