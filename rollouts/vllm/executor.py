"""vLLM's executor of one worker in this process, on the device that this process already uses.

vLLM's own takes device 0 in every process, and its `external_launcher` the rank's device but also the trainer's
distributed group. Importing this module imports vLLM.
"""

from __future__ import annotations

import torch
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class LocalExecutor(UniProcExecutor):
    """One worker of a world of its own, on the current device."""

    def _distributed_args(self) -> tuple[str, int, int]:
        """(where its group meets: a private file; its rank; its device)."""
        method, rank, local_rank = super()._distributed_args()
        return method, rank, torch.cuda.current_device() if torch.cuda.is_available() else local_rank
