"""Weights from GPU to GPU by NCCL, for a server on another machine or another GPU (vLLM's weight transfer API).

Written from the sources of vLLM 0.32 and NOT RUN: it needs two CUDA devices and the CUDA build of vLLM, and NCCL joins
no two ranks on one GPU. `VLLMServerEngine` does not use it; it pushes by files, which is right where trainer and server
are on one machine or see one folder (`ALIGN_VLLM_PUSH_FOLDER`). vLLM's other backend, ipc, sends pickled handles, which
its server must be told to trust (VLLM_ALLOW_INSECURE_SERIALIZATION); that is not done here.

    python -m rollouts.vllm.serve … --weight-transfer-config '{"backend": "nccl"}'

The workers receive tensor by tensor, as `NCCLWeightTransferEngine.receive_weights` does with packed off: rank 0 of the
group is the trainer, the workers come after it. A stream that breaks leaves the workers in an NCCL call that nobody
answers: the server is then to be started again. The group meets at a TCP port without a key, and tensors travel
unencrypted: for networks that are one's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from rollouts.errors import RolloutError
from rollouts.vllm.http import Address
from rollouts.vllm.push import PIECE, pieces
from rollouts.vllm.server import free_port


class NCCLSender:
    """The trainer's end of a group with all workers of one server.

    Args:
        address: the server's.
        host: of this machine, as the server's machine reaches it.
        timeout: seconds for one call.

    Raises:
        RolloutError: no CUDA here, or the server takes no weights this way.
    """

    def __init__(self, address: Address, host: str, *, timeout: float = 600.0):
        if not torch.cuda.is_available():
            raise RolloutError("weights go by NCCL from a CUDA device, and there is none here: push them by files")
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        self.address, self.timeout = address, timeout
        workers = int(address.ask("/get_world_size?include_dp=true", timeout=timeout)["world_size"])
        place = {"master_address": host, "master_port": free_port(), "world_size": workers + 1}
        self._caller = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm-transfer")
        joined = self._call("/init_weight_transfer_engine", {"init_info": place | {"rank_offset": 1, "packed": False}})
        self._group = trainer_init(place)  # meets the workers that the call above sets to wait
        joined.result()

    def send(self, named_tensors: Iterable[tuple[str, Tensor]], version: str) -> None:
        """Every weight of the model under checkpoint names; replies from then on name `version`."""
        self._call("/start_weight_update", {}).result()
        for piece in pieces(named_tensors, PIECE):
            update = {
                "names": [name for name, _ in piece],
                "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in piece],
                "shapes": [list(tensor.shape) for _, tensor in piece],
            }
            received = self._call("/update_weights", {"update_info": update})
            stream = torch.cuda.current_stream()
            for _, tensor in piece:
                self._group.broadcast(tensor.detach().cuda().contiguous(), src=0, stream=stream)
            stream.synchronize()
            received.result()
        self._call("/finish_weight_update", {"weight_version": version}).result()
        if not self._call("/reset_prefix_cache", {}).result()["success"]:
            raise RolloutError(f"the vLLM server {self.address.url} still works, and keeps keys of the old weights")

    def close(self) -> None:
        """Takes the group apart on both sides."""
        self._call("/shutdown_weight_transfer_engine", {}).result()
        self._group.destroy()
        self._caller.shutdown()

    def _call(self, path: str, body: dict[str, Any]) -> Any:
        return self._caller.submit(self.address.ask, path, body, timeout=self.timeout)
