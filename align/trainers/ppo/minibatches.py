"""How a rollout batch is cut: one shuffled order an epoch, minibatches (optimizer steps), ranks, micro-batches.

The order is drawn over the *global* batch's prompts from a seed that every rank shares, so which replies make a
minibatch does not depend on the number of ranks. The replies to one prompt stay together, in a minibatch, on a rank and
in a micro-batch, where they compute their prompt once; such a group is cut where a minibatch, a rank's share or a
micro-batch ends inside it. Inside a minibatch groups are sorted by what they cost before ranks and micro-batches are
dealt out: every rank gets like work and padding is small. Losses are sums over the minibatch, so none of this changes
them.

Every rank has as many rows, and as many micro-batches, as any other: passes of sharded models are collective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from align.recipe.ppo_section import PPOConfig
from align.runtime.errors import AlignError
from align.trainers.ppo.types import TokenBatch

Plan = list[tuple[Tensor, list[Tensor]]]  # of an epoch: by minibatch its global rows, and this rank's by micro-batch
Minibatches = Callable[[TokenBatch, int], Plan]  # (tokens, epoch); the seam `PPOTrainer.minibatches`
Rows = list[int]


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


@dataclass(frozen=True, slots=True)
class Room:
    """What a micro-batch may hold, and what rows take of it.

    Attributes:
        prompts, lengths: of every row, tokens of the prompt, and of prompt and reply.
        groups: of every row, one number for those that compute their prompt once; None where each computes its own, and
            all are padded to the longest.
        max_rows, max_tokens: of a micro-batch, computed ones; None is no bound.
    """

    prompts: list[int]
    lengths: list[int]
    groups: list[int] | None = None
    max_rows: int | None = None
    max_tokens: int | None = None

    @classmethod
    def of(cls, tokens: TokenBatch, config: PPOConfig, shares_prompts: bool) -> Room:
        """As the recipe says, for the rows of `tokens`, whose passes share prompts or do not."""
        prompts, lengths = tokens.prompt_lengths_N.tolist(), tokens.lengths_N.tolist()
        groups = tokens.groups_N.tolist() if shares_prompts and tokens.groups_N is not None else None
        return cls(prompts, lengths, groups, config.micro_batch_size, config.tokens_at_once)

    def cost(self, rows: Rows) -> int:
        """Tokens that a pass over these rows computes."""
        if self.groups is None:
            return len(rows) * max(self.lengths[row] for row in rows)
        prompts = {self.groups[row]: self.prompts[row] for row in rows}
        return sum(prompts.values()) + sum(self.lengths[row] - self.prompts[row] for row in rows)

    def shares(self, rows: Rows, world_size: int) -> list[list[Rows]]:
        """`rows` by rank and group: whole groups are dealt round-robin, those that cost most first; what would leave
        ranks with unequal numbers of rows is cut."""
        groups = sorted(self._grouped(sorted(rows)), key=lambda group: (-self.cost(group), group))
        size = max(map(len, groups))
        whole = [group for group in groups if len(group) == size]
        dealt = len(whole) - len(whole) % world_size
        rest = [row for group in whole[dealt:] for row in group]
        rest += [row for group in groups if len(group) < size for row in group]
        each = len(rest) // world_size
        return [
            whole[rank:dealt:world_size] + self._grouped(rest[rank * each : (rank + 1) * each])
            for rank in range(world_size)
        ]

    def micro_batches(self, groups: list[Rows]) -> list[Rows]:
        """As many groups together as there is room for; a group is cut where it alone is too large, and a row never."""
        parts: list[Rows] = []
        for group in groups:
            single = sorted(group, key=lambda row: (-self.lengths[row], row))
            parts += [group] if self._fits(group) else self._filled([[row] for row in single])
        return self._filled(parts)

    def _grouped(self, rows: Rows) -> list[Rows]:
        return [list(group) for _, group in groupby(rows, lambda row: row if self.groups is None else self.groups[row])]

    def _filled(self, parts: list[Rows]) -> list[Rows]:
        made: list[Rows] = []
        for part in parts:
            if made and self._fits(made[-1] + part):
                made[-1] = made[-1] + part
            else:
                made.append(part)
        return made

    def _fits(self, rows: Rows) -> bool:
        few = self.max_rows is None or len(rows) <= self.max_rows
        return few and (self.max_tokens is None or self.cost(rows) <= self.max_tokens)


def plan_minibatches(order_N: Tensor, room: Room, num_mini_batches: int, rank: int = 0, world_size: int = 1) -> Plan:
    """Cut one epoch.

    Args:
        order_N: a permutation of the global rows.

    Returns:
        Per minibatch its global rows and, for this rank, the rows of each micro-batch; those of one group are
        neighbours.
    """
    plan = []
    for rows_B in order_N.chunk(num_mini_batches):
        cuts = [room.micro_batches(share) for share in room.shares(rows_B.tolist(), world_size)]
        mine = _in_pieces(cuts[rank], max(map(len, cuts)))
        plan.append((rows_B, [torch.tensor(rows) for rows in mine]))
    return plan


def _in_pieces(micros: list[Rows], count: int) -> list[Rows]:
    """`count` micro-batches: those of most rows are cut in two."""
    while len(micros) < count:
        largest = max(micros, key=len)
        at, half = micros.index(largest), len(largest) // 2
        micros = [*micros[:at], largest[:half], largest[half:], *micros[at + 1 :]]
    return micros
