"""What every reward does alike: batches of similar length, and a check of what comes out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from align.runtime.terminal import shortened
from reward.protocol import RewardError, RewardUnavailableError


def checked(scores: Any, count: int, name: str) -> list[float]:
    """`scores` as `count` finite Python floats.

    Raises:
        RewardError: something that is no number (texts that look like one too), NaN or infinity; another number of
            scores, as a RewardUnavailableError: asked about one reply alone it would be right by chance.
    """
    try:
        if isinstance(scores, str | bytes | Mapping | Set):
            raise TypeError(f"a {type(scores).__name__} is no list of numbers")
        values = [_number(score) for score in scores]
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: a tensor of several numbers
        found = shortened(repr(scores))
        raise RewardError(f"reward {name!r} must give one float a reply, it gave {found} ({error})") from None
    if len(values) != count:
        raise RewardUnavailableError(f"reward {name!r} gave {len(values)} scores for {count} replies")
    bad = [index for index, value in enumerate(values) if not math.isfinite(value)]
    if bad:
        raise RewardError(
            f"reward {name!r} gave {values[bad[0]]} for reply {bad[0]} ({len(bad)} of {count} not finite)"
        )
    return values


def _number(score: Any) -> float:
    if isinstance(score, str | bytes):
        raise TypeError(f"{shortened(repr(score))} is a text")
    return float(score)


def batches_by_length(lengths: Sequence[int], batch_size: int, batch_tokens: int | None = None) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest first, so that little is padded.

    Args:
        batch_size: rows of a batch at most.
        batch_tokens: tokens of a batch at most, padding included; a longer row is a batch alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        most = batch_size if batch_tokens is None else min(batch_size, batch_tokens // max(lengths[order[start]], 1))
        batch = order[start : start + max(most, 1)]
        yield batch
        start += len(batch)


def require_room(rows: Sequence[Sequence[int]], batch_tokens: int | None, name: str) -> None:
    """Raises RewardError where a row has more tokens than a batch may."""
    longest = max(map(len, rows), default=0)
    if batch_tokens is not None and longest > batch_tokens:
        raise RewardError(
            f"reward {name!r}: a reply and its prompt are {longest} tokens, and a batch takes at most {batch_tokens}"
        )
