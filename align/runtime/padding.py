"""Rows of different lengths -> one tensor and its mask. Masks come from lengths, never from comparing ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def padded(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> Tensor:
    """int64 (B, T), each row filled up to the longest with `fill`, at the end or on the `left`; no rows: (0, 0)."""
    import torch

    width = max(map(len, rows), default=0)
    fills = [[fill] * (width - len(row)) for row in rows]
    whole = [[*more, *row] if left else [*row, *more] for more, row in zip(fills, rows, strict=True)]
    return torch.tensor(whole, dtype=torch.long).view(len(rows), width)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """`ids_BT` and `mask_BT` (int64, 1 = real token), padding at the end; T is the longest row."""
    return padded(rows, pad_id), padded([[1] * len(row) for row in rows], 0)


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """`ids_BT` and `mask_BT` (int64, 1 = real token), padding at the beginning, as generation needs it."""
    return padded(rows, pad_id, left=True), padded([[1] * len(row) for row in rows], 0, left=True)
