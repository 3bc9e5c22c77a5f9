"""Where supervised and pretraining stages need the LM head.

The shift happens here, on the weights of the labels and not on the logits: `logits[:, :-1]` would make the gradient of
the logits be copied once more.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def predicting_positions(weights_BT: Tensor) -> Tensor:
    """Where the LM head is needed: flat indices (N) into (B, T), ascending, of the positions *before* the labels that
    weigh something. The label judged at flat position p is the one at p + 1."""
    return F.pad(weights_BT[:, 1:], (0, 1)).flatten().nonzero().squeeze(-1)
