"""Which prompts come next: endless shuffled epochs of indices, or by a mixture; resumable, the same on every rank."""

from __future__ import annotations

import random
from typing import Any

from align.data.mixture import MixedOrder
from data_formats.errors import DataError, EmptyDatasetError


class PromptSampler:
    """Batches of indices below `size`; every index comes once before any comes again.

    The order depends on `size` and `seed` alone, so all ranks draw the same batch and each takes its slice. A batch may
    reach into the next epoch.

    Args:
        size: number of prompts.
        batch_size: indices a batch, over all ranks.
        seed: of the shuffles.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        if size < 1:
            raise EmptyDatasetError("there are no prompts to sample from")
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.epoch = self.position = 0
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        order = list(range(self.size))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        return order

    def next(self) -> list[int]:
        """The next `batch_size` indices."""
        batch: list[int] = []
        while len(batch) < self.batch_size:
            if self.position == self.size:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffled()
            taken = self._order[self.position : self.position + self.batch_size - len(batch)]
            batch += taken
            self.position += len(taken)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands."""
        return {"size": self.size, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` stood.

        Raises:
            DataError: the state is of another number of prompts or another seed, so its order would not continue.
        """
        for name, mine in (("size", self.size), ("seed", self.seed)):
            if state[name] != mine:
                raise DataError(
                    f"the checkpoint was made with {name} {state[name]} of prompts, now it is {mine}; "
                    "resume with the same data and seed, or start anew"
                )
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._shuffled()


class MixedPromptSampler:
    """Batches of indices by the shares of a mixture, a batch a step; otherwise as `PromptSampler`."""

    def __init__(self, order: MixedOrder):
        self.order, self.step = order, 0

    def next(self) -> list[int]:
        """The next batch of indices."""
        self.step += 1
        return self.order.rows(self.step - 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands."""
        return {"sizes": self.order.sizes, "seed": self.order.seed, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` stood.

        Raises:
            DataError: the state is of other prompts, of another seed or of no mixture.
        """
        mine = self.state_dict()
        if any(state.get(name) != mine[name] for name in ("sizes", "seed")):
            raise DataError(
                "the checkpoint was made with other prompts, another seed or no mixture; resume with the same, or "
                "start anew"
            )
        self.step = state["step"]
