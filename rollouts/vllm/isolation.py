"""vLLM beside a trainer: what it changes in the process that hosts it is put back.

Importing vLLM, building an engine, sampling and closing it seed the global random generators, set environment
variables, replace `torch.set_num_threads` by a function that does nothing, configure logging, freeze the garbage
collector's heap, hook exceptions and open a distributed group (of one rank, on a file) when there is none; closing
destroys every distributed group of the process. `undisturbed` puts all of that back, and vLLM's groups live in a
`PrivateWorld` that the process does not see as its own: a trainer's group stays its default group, and without one the
process does not look distributed.

What stays after the first import: vLLM's registered operators and its repairs of torch's compiler; and on a CPU with
several NUMA nodes the process's memory is bound to one of them.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import distributed
from torch.distributed import distributed_c10d

# Without these vLLM runs its engine in another process, reports usage over the network, and logs on its own.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": "0"}


class PrivateWorld:
    """vLLM's own distributed groups, kept apart from those of the hosting process; one for all engines of a process."""

    _group: ClassVar[Any] = None
    _engines: ClassVar[int] = 0

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[None]:
        """While an engine is built: vLLM's default group, if there is one yet, is the process's default group.

        An engine that could be built is counted, and has to `leave`.
        """
        host = distributed.GroupMember.WORLD
        distributed_c10d._update_default_pg(cls._group)
        cls._engines += 1
        try:
            yield
        except BaseException:
            cls._group = distributed.GroupMember.WORLD
            distributed_c10d._update_default_pg(host)
            cls.leave()
            raise
        cls._group = distributed.GroupMember.WORLD
        distributed_c10d._update_default_pg(host)

    @classmethod
    def leave(cls) -> None:
        """Destroys vLLM's groups, and those alone, when the last engine leaves."""
        cls._engines -= 1
        if cls._engines:
            return
        from vllm.distributed import parallel_state

        host = distributed.GroupMember.WORLD
        distributed_c10d._update_default_pg(None)  # vLLM would destroy the default group, and with it all others
        try:
            parallel_state.destroy_model_parallel()
            parallel_state.destroy_distributed_environment()
        finally:
            distributed_c10d._update_default_pg(host)
        if cls._group is not None:
            distributed.destroy_process_group(cls._group)
            cls._group = None


@contextmanager
def without_vllms_cleanup() -> Iterator[None]:
    """vLLM's engine core destroys every distributed group of the process when it shuts down; not while inside."""
    from vllm.v1.engine import core

    cleanup = core.cleanup_dist_env_and_memory
    core.cleanup_dist_env_and_memory = lambda *_, **__: None
    try:
        yield
    finally:
        core.cleanup_dist_env_and_memory = cleanup


@contextmanager
def undisturbed(**environment: str | None) -> Iterator[None]:
    """Everything that this module's docstring names is afterwards as it was before.

    Args:
        environment: variables for the while beside `ENVIRONMENT`; None takes one away.
    """
    variables = dict(os.environ)
    generators = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    dtype, hook, freeze = torch.get_default_dtype(), sys.excepthook, gc.freeze
    gc.freeze = lambda: None  # what is frozen cannot be told apart from what the host froze
    factory = logging.getLogRecordFactory()
    try:
        for name, value in (ENVIRONMENT | environment).items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        with warnings.catch_warnings():
            yield
    finally:
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        sys.excepthook = hook
        gc.freeze = freeze
        logging.setLogRecordFactory(factory)


def quiet() -> None:
    """vLLM logs through the process's own handlers, errors alone; `VLLM_LOGGING_LEVEL` asks for more."""
    logger = logging.getLogger("vllm")
    logger.setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR").upper())
