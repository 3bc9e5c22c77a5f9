"""The policy's passes of an iteration that are not made twice.

Old log-probabilities come from a pass of the policy as it stands, and so does the first gradient. Where nothing lies
between the two, one pass is both, to the bit: over what is learnt from first the update takes up the pass that was
made (`KeptPass`), and where an iteration has one optimizer step and nothing before it asks what the policy says, the
update's are the only ones (`LatePass`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from align.runtime.devices import index_on


class KeptPass:
    """The policy's pass over the micro-batch that is learnt from first, with the graph that its gradient is made by, so
    that the update need not make it again. An update holds the graph of one micro-batch anyway. Copies have nothing to
    give.

    Args:
        tokens, rows_B: the experience's own `TokenBatch`, and which of its rows.
        said: what the pass gave.
        weights: of the policy.
    """

    def __init__(self, tokens: object, rows_B: Tensor, said: Any, weights: Sequence[Tensor]):
        self.tokens, self.rows_B, self.said, self.weights = tokens, rows_B, said, weights
        self.versions = self._versions()

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptPass, (self.tokens, self.rows_B, None, ())

    def is_over(self, tokens: object, rows_B: Tensor) -> bool:
        """Whether it is the pass over these rows of these tokens."""
        return tokens is self.tokens and torch.equal(rows_B, self.rows_B)

    def take(self) -> Any | None:
        """What the pass gave, once; None where it was taken, or a weight was written to since."""
        said, self.said = self.said, None
        return said if self._versions() == self.versions else None

    def _versions(self) -> list[int]:
        return [weight._version for weight in self.weights]


class LatePass:
    """What the policy says of an iteration's replies, told by its only update: of each micro-batch before its gradient.

    Args:
        names: what of `ReplyLogprobs` is told.
        like_NS: of that shape and dtype.

    Attributes:
        told: by name, (N, S) nats, without gradient; 0 until told.
    """

    def __init__(self, names: Iterable[str], like_NS: Tensor):
        self.told = {name: torch.zeros_like(like_NS) for name in names}

    def tell(self, rows_B: Tensor, said: Any) -> None:
        """Take in what the policy says of some rows."""
        for name, whole_NS in self.told.items():
            said_BS = getattr(said, name).detach()
            whole_NS[index_on(whole_NS.device, rows_B), : said_BS.shape[1]] = said_BS.to(whole_NS)

    def over_ranks(self, accelerator: Accelerator) -> None:
        """Of all ranks' rows, each of which one rank was told of. Collective."""
        if accelerator.num_processes > 1:
            for whole_NS in self.told.values():
                whole_NS.copy_(accelerator.reduce(whole_NS, "sum"))

    def rows(self, rows_B: Tensor, states: int) -> LatePass:
        """The whole: it is told by rows."""
        return self
