"""The linear head that reads a scalar off a hidden state, in float32 whatever the backbone computes in."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Float32Module(nn.Module):
    """Its tensors stay as they are under `.to(dtype)`, `.half()` and `.bfloat16()`; they still move between devices."""

    def _apply(self, fn, recurse=True):
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)


class ScalarHead(Float32Module):
    """One bias-free linear unit; its weight stays float32 under autocast, `.to(dtype)`, `.half()` and `.bfloat16()`.

    The weight is drawn from N(0, 1/sqrt(d + 1)) (standard deviation; "The N implementation details of RLHF with PPO",
    detail on head initialisation) with the global torch generator, or is zero for a critic.

    Args:
        hidden_size: d.
        zero: start at 0.
    """

    def __init__(self, hidden_size: int, *, zero: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size, dtype=torch.float32))
        if not zero:
            nn.init.normal_(self.weight, std=1 / math.sqrt(hidden_size + 1))

    def forward(self, states_Xd: Tensor) -> Tensor:
        """Float32 scalars of shape X for hidden states of shape (X, d)."""
        with torch.autocast(device_type=states_Xd.device.type, enabled=False):
            return F.linear(states_Xd.float(), self.weight.float()).squeeze(-1)
