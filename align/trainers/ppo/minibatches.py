"""How a rollout batch is cut: one shuffled order an epoch, minibatches (optimizer steps), ranks, micro-batches.

The order is drawn over the *global* batch from a seed that every rank shares, so which replies make a minibatch does
not depend on the number of ranks. Inside a minibatch rows are sorted by length before ranks and micro-batches are dealt
out: every rank gets like work and padding is small. Losses are sums over the minibatch, so the sorting changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from align.runtime.errors import AlignError
from align.trainers.ppo.types import TokenBatch

Plan = list[tuple[Tensor, list[Tensor]]]  # of an epoch: by minibatch its global rows, and this rank's by micro-batch
Minibatches = Callable[[TokenBatch, int], Plan]  # (tokens, epoch); the seam `PPOTrainer.minibatches`


class BatchSplitError(AlignError, ValueError):
    """A rollout batch that cannot be cut evenly. (`align.recipe.batch` finds it earlier, where there is a recipe.)"""


def check_split(prompts: int, num_generations: int, num_mini_batches: int, world_size: int) -> None:
    """Refuse splits that would leave ranks or minibatches of unequal size.

    Raises:
        BatchSplitError: naming the keys and the nearest way out.
    """
    if prompts % world_size:
        raise BatchSplitError(
            f"ppo.rollout_batch_size = {prompts} prompts cannot be shared equally by {world_size} ranks: "
            f"use a multiple of {world_size}"
        )
    responses = prompts * num_generations
    if responses % (num_mini_batches * world_size):
        raise BatchSplitError(
            f"ppo.rollout_batch_size * rollout.num_generations = {responses} responses cannot be cut into "
            f"ppo.num_mini_batches = {num_mini_batches} equal minibatches over {world_size} rank(s): "
            f"make the product a multiple of {num_mini_batches * world_size}"
        )


def shuffled(count: int, seed: int) -> Tensor:
    """A permutation of 0..count-1 that depends on `seed` alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def rank_share(lengths: Sequence[int], rank: int, world_size: int) -> list[int]:
    """Indices of this rank's share, longest first: dealt round-robin so that ranks get equal numbers and like work."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return order[rank::world_size]


def plan_minibatches(
    order_N: Tensor, lengths_N: Tensor, num_mini_batches: int, micro_batch_size: int, rank: int = 0, world_size: int = 1
) -> Plan:
    """Cut one epoch.

    Args:
        order_N: a permutation of the global rows.
        lengths_N: tokens a row.

    Returns:
        Per minibatch its global rows and, for this rank, the rows of each micro-batch.
    """
    plan = []
    for rows in order_N.chunk(num_mini_batches):
        mine = rows[rank_share(lengths_N[rows].tolist(), rank, world_size)]
        plan.append((rows, list(mine.split(micro_batch_size))))
    return plan
