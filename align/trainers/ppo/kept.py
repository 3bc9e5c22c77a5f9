"""The one pass of an iteration that is not made twice: the policy's over what is learnt from first.

Old log-probabilities come from a pass of the policy as it stands, and so does the first gradient. Where nothing lies
between the two, the update takes up the pass that was made, to the bit the one that it would make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class KeptPass:
    """The policy's pass over the micro-batch that is learnt from first, with the graph that its gradient is made by, so
    that the update need not make it again. An update holds the graph of one micro-batch anyway.

    Args:
        rows_B: of the experience.
        said: what the pass gave.
        weights: of the policy.
    """

    def __init__(self, rows_B: Tensor, said: Any, weights: Sequence[Tensor]):
        self.rows_B, self.said, self.weights = rows_B, said, weights
        self.versions = self._versions()

    def take(self) -> Any | None:
        """What the pass gave, once; None where it was taken, or a weight was written to since."""
        said, self.said = self.said, None
        return said if self._versions() == self.versions else None

    def _versions(self) -> list[int]:
        return [weight._version for weight in self.weights]
