"""Matrices of vectors (N, D): rows of length 1, and their rows piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

CHUNK = 4096  # rows at once


def chunks(count: int, size: int = CHUNK) -> Iterator[slice]:
    """Slices that cover `count` rows in order."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def unit_rows(vectors: Any) -> np.ndarray:
    """Rows divided by their length, as float32; a row of zeros becomes the first axis."""
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    empty = lengths[:, 0] < 1e-12
    vectors = vectors / np.where(lengths < 1e-12, 1.0, lengths)
    vectors[empty] = 0
    vectors[empty, 0] = 1
    return vectors
