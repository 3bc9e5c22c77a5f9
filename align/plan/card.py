"""The memory of a card, and how much of it a program can use."""

from __future__ import annotations

import re

from align.plan.parts import GIB
from align.plan.shapes import PlanError

CONTEXT = 0.75 * GIB  # CUDA's context with cuBLAS's workspaces, before the first tensor
UNUSABLE = 0.05  # share that torch's allocator leaves in pieces between blocks of unlike size
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GiB|G|MB|MiB|M)?", re.IGNORECASE)


def read_size(text: str) -> int:
    """Bytes of `24GB`, `24GiB`, `24` or `24000MB`. Sellers of cards mean binary units: a "24 GB" card has 24 GiB.

    Raises:
        PlanError: no such size.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found or float(found[1]) <= 0:
        raise PlanError(f"--gpu {text}: write a card's memory as 24GB")
    unit = GIB if (found[2] or "G").upper().startswith("G") else 2**20
    return round(float(found[1]) * unit)


def usable(size: int) -> int:
    """What of a card's memory tensors can have."""
    return max(0, round(size * (1 - UNUSABLE) - CONTEXT))
