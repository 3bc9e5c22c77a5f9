"""From the recipe's `rollout.engine` to an engine."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from rollouts.errors import RolloutError
from rollouts.hf import HFEngine
from rollouts.protocol import Engine

logger = logging.getLogger(__name__)


def make_engine(kind: str, model: nn.Module, *, pad_token_id: int, batch_size: int = 64, **options: Any) -> Engine:
    """The engine that `kind` names, around the trainer's own module.

    Args:
        kind: "hf", or "auto", which takes the best engine that is usable here and logs which one that is. This version
            has one engine, so that is HF.
        options: further arguments of `HFEngine`.

    Raises:
        RolloutError: an unknown kind.
    """
    if kind not in ("auto", "hf"):
        raise RolloutError(f"unknown rollout engine '{kind}': choose 'auto' or 'hf'")
    if kind == "auto":
        logger.info("rollout engine: auto takes HF generate (in this process), the only engine of this version")
    return HFEngine(model, pad_token_id, batch_size, **options)
