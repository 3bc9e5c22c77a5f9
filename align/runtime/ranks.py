"""The questions a run asks of its ranks. One process without `torch.distributed` is rank 0 of 1."""

from __future__ import annotations

import os
import sys

BACKENDS = ("gloo/", "NCCL", "TCPStore", "onnection closed by peer", "onnection reset by peer")


def is_main() -> bool:
    """Whether this is the rank that writes shared files and talks to the user.

    Before the ranks have met, the launcher's `RANK` says which one this is; torch need not be imported yet.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def lost_rank(error: BaseException) -> bool:
    """Whether `error`, or what it came of, is a backend (gloo, NCCL, the store) saying that another rank is gone."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        told = isinstance(cause, RuntimeError) and any(word in str(cause) for word in BACKENDS)
        if told or isinstance(cause, getattr(dist, "DistError", ())):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank. Collective: every rank calls it, and none leaves before all have come."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return flag
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    total = torch.tensor(int(flag), device=device)
    dist.all_reduce(total)
    return bool(total.item())
