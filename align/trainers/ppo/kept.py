"""The one pass of an iteration that is not made twice: the policy's over what is learnt from first.

Old log-probabilities come from a pass of the policy as it stands, and so does the first gradient. Where nothing lies
between the two, the update takes up the pass that was made, to the bit the one that it would make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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
