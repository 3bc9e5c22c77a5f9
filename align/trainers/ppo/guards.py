"""When a PPO run should not go on, on which ranks that must be known, and when it should say something."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from align.recipe.ppo_section import GuardSection, PPOConfig
from align.runs.errors import TrainingError
from align.runtime.errors import AlignError
from align.runtime.memory import memory_errors
from align.runtime.ranks import agree
from reward.failures import MAX_FAILED_SHARE
from reward.protocol import RewardError

Result = TypeVar("Result")
Together = Callable[[Callable[[], Any]], Any]  # the seam `PPOTrainer.together`
logger = logging.getLogger(__name__)


class NotFiniteError(TrainingError):
    """A gradient that is not finite; nothing was stepped by it."""


def together(work: Callable[[], Result]) -> Result:
    """`work()` of this rank, once it has gone well on all of them. Collective.

    Raises:
        TrainingError: on every rank, with the words of an AlignError (the engine's, the reward's) of its own, else of
            the first rank that failed. Another exception is raised as it came on the ranks that met it.
    """
    try:
        return agree(work, TrainingError)
    except AlignError as problem:
        raise TrainingError(str(problem)) from problem


def reason_to_stop(metrics: dict[str, float], guards: GuardSection) -> str | None:
    """Why the run should stop after an iteration's replies with these figures; None when it should not.

    Reads `kl/reply` and `entropy`; what is absent stops nothing.
    """
    kl, entropy = metrics.get("kl/reply"), metrics.get("entropy")
    if guards.max_kl is not None and kl is not None and not kl <= guards.max_kl:
        return (
            f"the KL to the reference is {kl:.4g} nats a reply, above guards.max_kl = {guards.max_kl:g}: "
            "continue from an earlier checkpoint with a larger kl_coef or a lower learning rate, or allow more"
        )
    if guards.min_entropy is not None and entropy is not None and not entropy >= guards.min_entropy:
        return (
            f"the entropy is {entropy:.4g} nats a token, below guards.min_entropy = {guards.min_entropy:g}: the policy "
            "has collapsed; continue from an earlier checkpoint with a larger kl_coef or entropy_coef, or a lower "
            "learning rate"
        )
    return None


def warn_of(metrics: dict[str, float], guards: GuardSection, iteration: int) -> None:
    """Say when all replies of the iteration got one score, from which nothing can be learnt but the KL."""
    spread = metrics.get("score/std")
    if guards.warn_equal_rewards and spread is not None and math.isclose(spread, 0.0, abs_tol=1e-12):
        logger.warning(
            "iteration %d: all replies got the same score (%g): only the KL teaches the policy; look at the reward and "
            "at samples.jsonl (guards.warn_equal_rewards=false silences this)",
            iteration,
            metrics["score/mean"],
        )


def require_judged(failures: Sequence[str], count: int, where: str = "", quiet: bool = False) -> None:
    """Say on how many of `count` replies, over all ranks, the reward failed, unless another rank does (`quiet`).

    Raises:
        RewardError: on more of them than may be left out.
    """
    if len(failures) > MAX_FAILED_SHARE * count:
        raise RewardError(
            f"{len(failures)} of {count} replies cannot be judged, more than the {MAX_FAILED_SHARE:.0%} that "
            f"on_reward_error: mask leaves out; the first: {failures[0]}"
        )
    if failures and not quiet:
        words = (where, len(failures), count, failures[0])
        logger.warning("%s: %d of %d replies cannot be judged and teach nothing; the first: %s", *words)


def enough_memory(config: PPOConfig, part: str) -> AbstractContextManager[None]:
    """Around one `part` of an iteration (rollout, score, experience, update) or an `evaluation`: where memory is not
    enough, an OutOfMemoryError names the keys that this part reads."""
    length = f"ppo.rollout.max_completion_length ({config.rollout.max_completion_length})"
    sampled = f"ppo.rollout.batch_size ({config.rollout.batch_size})"
    bounds = {"micro_batch_tokens": config.tokens_at_once, "micro_batch_size": config.micro_batch_size}
    micro = [f"ppo.{key} ({bound})" for key, bound in bounds.items() if bound is not None]
    ptx = [f"ppo.ptx_micro_batch_size ({config.ptx_rows_at_once})"] if config.uses_ptx else []
    keys = {
        "rollout": ("sampling replies", sampled, length),
        "score": ("the reward", "its batch_size", length),
        "experience": ("the passes over the sampled replies", *micro, length),
        "update": ("the update", *micro, *ptx, length),
        "evaluation": ("the evaluation", sampled, *micro, "the reward's batch_size", length),
    }
    return memory_errors(*keys[part])
