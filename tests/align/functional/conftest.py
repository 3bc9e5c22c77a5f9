"""Random cases with ragged masks and a hole, and the garbage that must not matter."""

from __future__ import annotations

import itertools

import pytest
import torch

GARBAGE = (float("nan"), float("inf"), float("-inf"), 1e30, -7.0)


@pytest.fixture
def mask_BT() -> torch.Tensor:
    """Padding left, padding right, a gap in the middle, a single token, a full row."""
    return torch.tensor(
        [[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    )


@pytest.fixture
def random_BT(mask_BT):
    """`random_BT(seed, scale)`: float64 noise of the mask's shape."""

    def make(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (scale * torch.randn(mask_BT.shape, generator=generator, dtype=torch.float64)).to(dtype)

    return make


@pytest.fixture
def poison():
    """`poison(x, mask)`: a copy of `x` with NaN, infinities and large numbers, in turn, where the mask is 0."""

    def put(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        dirty = x.detach().clone()
        garbage = itertools.cycle(GARBAGE)
        for index in (mask == 0).nonzero().tolist():
            dirty[tuple(index)] = next(garbage)
        return dirty

    return put
