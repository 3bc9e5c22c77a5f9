"""What ranks ask each other and agree on. One process without `torch.distributed` is rank 0 of 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from align.runtime.errors import AlignError

Item, Result = TypeVar("Item"), TypeVar("Result")

WAIT_MINUTES = "ALIGN_WAIT_MINUTES"
BACKENDS = ("gloo/", "NCCL", "TCPStore", "onnection closed by peer", "onnection reset by peer")


def is_main() -> bool:
    """Whether this is the rank that writes shared files and talks to the user.

    Before the ranks have met, the launcher's `RANK` says which one this is; torch need not be imported yet.
    """
    group = _group()
    if group is not None:
        return group.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def patience() -> timedelta:
    """How long ranks wait for one that does not come: a day, since the first one may work alone for hours, or
    `ALIGN_WAIT_MINUTES`.

    Raises:
        AlignError: that is no number above 0.
    """
    text = os.environ.get(WAIT_MINUTES, "1440")
    try:
        found = timedelta(minutes=float(text))
    except (ValueError, OverflowError):
        found = timedelta()
    if found <= timedelta():
        raise AlignError(f"{WAIT_MINUTES} must be a number of minutes above 0, found {text!r}")
    return found


def lost_rank(error: BaseException) -> str | None:
    """What to say of another rank that is gone or does not come, where `error`, or what it came of, is a backend (gloo,
    NCCL, the store) saying so; else None."""
    words = _of_backend(error)
    if words is None:
        return None
    if "timed out" not in words.lower():
        return "another rank was killed (for want of memory?) or lost"
    minutes = patience() / timedelta(minutes=1)
    return f"another rank did not come within {minutes:g} minutes ({WAIT_MINUTES}): it is stuck, or slower than that"


def _of_backend(error: BaseException) -> str | None:
    """The words of a backend in `error`, or in what it came of."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        told = isinstance(cause, RuntimeError) and any(word in str(cause) for word in BACKENDS)
        if told or isinstance(cause, getattr(dist, "DistError", ())):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank. Collective: every rank calls it, and none leaves before all have come."""
    group = _group()
    if group is None:
        return flag
    import torch

    device = torch.device("cuda", torch.cuda.current_device()) if group.get_backend() == "nccl" else torch.device("cpu")
    total = torch.tensor(int(flag), device=device)
    group.all_reduce(total)
    return bool(total.item())


def barrier() -> None:
    """Waits for all ranks. Collective."""
    any_rank(False)


def agree(work: Callable[[], Result], failed: Callable[[str], Exception], *, mine: bool = True) -> Result | None:
    """`work()` of the ranks whose it is, once it has gone well on all of them. Collective: every rank calls it.

    Args:
        failed: makes the error of a rank whose own work went well, from the words of the first whose did not.
        mine: whether this rank works, or only learns how it went (`is_main()`: the first rank works for all).

    Returns:
        What `work` gave here, None where it is another rank's.

    Raises:
        Exception: what `work` raised here, as it came; else `failed(words)` where another rank's work raised.
    """
    result, problem, words = None, None, ""
    try:
        result = work() if mine else None
    except Exception as error:
        known = isinstance(error, AlignError) and str(error)
        problem, words = error, known or f"{type(error).__name__}: {error}"
    told = [one for one in _of_all_ranks(words) if one]
    if problem is not None:
        raise problem
    if told:
        raise failed(told[0])
    return result


def of_first(work: Callable[[], Result], failed: Callable[[str], Exception]) -> Result:
    """What `work()` gives on the first rank, which alone does it, on every rank. Collective: every rank calls it.

    Args, errors: see `agree`.
    """
    group = _group()
    if group is None:
        return work()
    told: list[Any] = [agree(work, failed, mine=is_main())]
    group.broadcast_object_list(told)
    return told[0]


def share(count: int, rank: int, ranks: int) -> range:
    """The places of one rank's part of a list of `count`: neighbours, as many as any other rank has, or one more."""
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def spread(
    items: Sequence[Item],
    work: Callable[[Sequence[Item], int], Sequence[Result]],
    failed: Callable[[str], Exception],
) -> list[Result]:
    """What `work` gives for the items, each rank's part of them done there, joined in their order; on every rank.
    Collective: every rank calls it, with the same items.

    Args:
        work: is given a part and the place of its first item; not called for none.

    Other args, errors: see `agree`.
    """
    group = _group()
    rank, ranks = (0, 1) if group is None else (group.get_rank(), group.get_world_size())
    part = share(len(items), rank, ranks)
    own = agree(lambda: work(items[part.start : part.stop], part.start) if part else (), failed)
    return [one for results in _of_all_ranks(list(own or ())) for one in results]


def _of_all_ranks(value: Any) -> list[Any]:
    group = _group()
    if group is None:
        return [value]
    told: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(told, value)
    return told


def _group() -> Any:
    """`torch.distributed` where the ranks have met. A program that has not imported torch has no others."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None
