"""Ranks of a test: processes over gloo that begin as torchrun's do, forked from one that has imported everything."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.align.trainers.ppo_case"])  # with it torch, transformers and peft
PLAIN = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
PLAIN |= {"TOKENIZERS_PARALLELISM": "false"}
FSDP2 = {  # what `accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP` sets
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


def on_ranks(
    ranks: int, function: Callable[..., None], *args: Any, environment: Mapping[str, str] | None = None
) -> None:
    """Call a module's `function` in as many new processes as there are to be ranks; one alone is no process group.

    Raises:
        AssertionError: a rank failed or waited too long; with what all ranks printed.
    """
    codes, printed = exit_codes(ranks, function, *args, environment=environment)
    assert not any(codes), printed


def exit_codes(
    ranks: int, function: Callable[..., None], *args: Any, environment: Mapping[str, str] | None = None
) -> tuple[list[int], str]:
    """As `on_ranks`, but gives each rank's exit code (-9 of a killed one, and of those that waited for it) and what all
    printed."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(rank)) for rank in range(ranks)]
        common = dict(os.environ) | PLAIN | dict(environment or {})
        own = [common | place for place in _places(ranks)] if ranks > 1 else [common]
        started = [
            PROCESSES.Process(target=_begin, args=(log, mine, function, args))
            for log, mine in zip(logs, own, strict=True)
        ]
        for process in started:
            process.start()
        running = list(started)
        while running and not any(process.exitcode for process in started):
            wait([process.sentinel for process in running])
            running = [process for process in running if process.exitcode is None]
        for process in running:
            process.kill()
        for process in started:
            process.join()
        printed = "\n".join(log.read_text(errors="replace") for log in logs if log.exists())
        return [process.exitcode for process in started], printed


def _places(ranks: int) -> list[dict[str, str]]:
    """What torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [size | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _begin(log: Path, environment: dict[str, str], function: Callable[..., None], args: tuple[Any, ...]) -> NoReturn:
    """A rank from start to end. No destructors: gloo's threads may keep that of a process group for ever."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(250, exit=True)
    function(*args)
    if distributed.is_initialized():
        distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
