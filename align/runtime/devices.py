"""Devices: from the host to an accelerator without waiting for it; what a processor is slow at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, device


def index_on(there: device, numbers: Tensor | Sequence) -> Tensor:
    """int64 `numbers` of the host, on the device `there`.

    torch takes an index of the host for a tensor that is elsewhere, too, and then waits at every use until the device
    has done all that was asked of it before; so does `torch.tensor(numbers, device=there)`.
    """
    import torch

    return torch.as_tensor(numbers, dtype=torch.int64).to(there, non_blocking=True)


def bfloat16_is_slow() -> bool:
    """Whether products in bfloat16 are worked out one by one here: on processors for which oneDNN has no kernel of them
    (those without AVX-512 or its like), some forty times slower than in float32."""
    import torch

    return not torch.accelerator.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
