"""Which rows make up which optimizer step, and how they are dealt to ranks and micro-batches.

The rows of a step depend on the seed and the epoch alone, so that neither the micro-batch size nor the number of ranks
changes what a step learns from. Inside a step the rows are sorted by length before they are dealt out, which saves
padding and changes gradients only by rounding, because losses are sums over the global count of the step.

`group_by_length` goes further and fills whole steps with rows of like length (`get_length_grouped_indices` of
transformers: shuffled, then sorted within 50 steps), which saves padding without accumulation too. Departure: the steps
are shuffled afterwards, so that an epoch is not a series of descents from long to short. The price is that the rows of
a step are no longer independent of one another's length.

Departures from `transformers.Trainer`: accelerate repeats rows to fill the last batch of several ranks; here no row is
ever seen twice in an epoch, but where a mixture asks for it (`MixedSampler`). With W ranks the last, short step of an
epoch is cut down to a multiple of W rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from align.data.mixture import MixedOrder
from align.runs.seeding import derive
from data_formats.errors import EmptyDatasetError


class StepSampler:
    """A batch sampler: yields this rank's micro-batches of row indices, step after step, for one epoch.

    Args:
        lengths: length of every row in tokens, used only to put rows of like length together.
        rows_per_step: rows of one optimizer step over all ranks.
        micro_batch_size: rows this rank holds at once.
        world_size, rank: ranks in all, and which one this is.
        seed: fixes the order; every epoch has its own.
        shuffle: False keeps the order of the rows.
        group_by_length: fill a step with rows of like length (not without `shuffle`).

    Raises:
        EmptyDatasetError: there is no row for every rank.
        ValueError: `group_by_length` without `shuffle`.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        rows_per_step: int,
        micro_batch_size: int,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        group_by_length: bool = False,
    ):
        if group_by_length and not shuffle:
            raise ValueError("group_by_length draws its order; it cannot be had with shuffle=False")
        if len(lengths) < world_size:
            raise EmptyDatasetError(
                f"{len(lengths)} training rows cannot be shared by {world_size} ranks: add data or use fewer ranks"
            )
        self.lengths, self.rows_per_step, self.micro_batch_size = lengths, rows_per_step, micro_batch_size
        self.world_size, self.rank, self.seed, self.shuffle = world_size, rank, seed, shuffle
        self.group_by_length = group_by_length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of `epoch` (0-based) from the next iteration on."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """Row indices of the current epoch."""
        if not self.shuffle:
            return list(range(len(self.lengths)))
        generator = torch.Generator().manual_seed(derive(self.seed, "order", self.epoch))
        if not self.group_by_length:
            return torch.randperm(len(self.lengths), generator=generator).tolist()
        rows = get_length_grouped_indices(self.lengths, self.rows_per_step, generator=generator)
        full = len(rows) // self.rows_per_step
        steps = [rows[at * self.rows_per_step : (at + 1) * self.rows_per_step] for at in range(full)]
        shuffled = torch.randperm(full, generator=generator).tolist()
        return [row for at in shuffled for row in steps[at]] + rows[full * self.rows_per_step :]

    def steps(self) -> Iterator[list[int]]:
        """The rows of every optimizer step over all ranks."""
        order = self.order()
        for start in range(0, len(order), self.rows_per_step):
            rows = order[start : start + self.rows_per_step]
            rows = rows[: len(rows) - len(rows) % self.world_size]
            if rows:
                yield rows

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.steps():
            mine = sorted(rows, key=lambda row: (-self.lengths[row], row))[self.rank :: self.world_size]
            for start in range(0, len(mine), self.micro_batch_size):
                yield mine[start : start + self.micro_batch_size]

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self.rows_per_step)

        def micro_batches(rows: int) -> int:
            return -(-(rows // self.world_size) // self.micro_batch_size)

        return full * micro_batches(self.rows_per_step) + micro_batches(rest)


class MixedSampler(StepSampler):
    """As `StepSampler`, with the rows of every step by the shares of a mixture. An epoch has as many steps as one over
    the rows would, and all of them are whole.

    Args:
        lengths: of every row in tokens.
        order: which rows a step takes.
        micro_batch_size, world_size, rank: as of `StepSampler`.
    """

    def __init__(self, lengths: Sequence[int], order: MixedOrder, **options: int):
        super().__init__(lengths, rows_per_step=order.rows_per_step, **options)
        self.mixed = order
        self.steps_per_epoch = -(-len(lengths) // order.rows_per_step)

    def steps(self) -> Iterator[list[int]]:
        first = self.epoch * self.steps_per_epoch
        for step in range(first, first + self.steps_per_epoch):
            yield self.mixed.rows(step)

    def __len__(self) -> int:
        return self.steps_per_epoch * -(-self.rows_per_step // self.world_size // self.micro_batch_size)


class EpochOrder(TrainerCallback):
    """Tells the sampler which epoch comes next, where a resumed epoch goes on in its middle too: up to transformers
    5.18 `Trainer` does not tell what it skips the first batches of."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        train_dataloader.batch_sampler.set_epoch(int(state.epoch))
