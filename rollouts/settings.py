"""What an engine with weights of its own is told, apart from how to sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class VLLMSettings:
    """Settings of vLLM, in-process or as a server.

    Attributes:
        max_model_len: tokens of the longest prompt with its longest reply.
        dtype: "auto" takes the policy's.
        memory_share: share of the GPU's memory for weights and cache (`gpu_memory_utilization`); not read on a CPU.
        kv_cache_gib: size of the key-value cache in GiB; default on a GPU what `memory_share` leaves, on a CPU 1.
        prefix_caching: prompts with the same beginning share its keys and values.
        tensor_parallel: GPUs that one engine is spread over.
        eager: no CUDA graphs and no compilation; the only way on a CPU.
        max_num_seqs: replies generated at once.
        sleep: free the cache while the trainer updates, where the platform can.
        adapters: how a LoRA policy is pushed: "merge" pushes whole weights with the adapter's change added, "adapter"
            only the adapter, "auto" the faster one of the platform (CPU: merge, GPU and server: adapter).
        probe_tolerance: nats a token that engine and trainer may differ by after a push; default by precision.
        seed: of the engine itself; replies have seeds of their own.
        urls: servers to use in place of an own one; the work is spread over them.
        api_key_env: name of the environment variable that holds the key of those servers.
        start_timeout, request_timeout: seconds to wait for a server to come up, and for one call to be answered.
        max_restarts: how often an own server that died or hangs is started again in one run.
    """

    max_model_len: int
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    memory_share: float = 0.3
    kv_cache_gib: float | None = None
    prefix_caching: bool = True
    tensor_parallel: int = 1
    eager: bool = False
    max_num_seqs: int = 256
    sleep: bool = True
    adapters: Literal["auto", "merge", "adapter"] = "auto"
    probe_tolerance: float | None = None
    seed: int = 0
    urls: tuple[str, ...] = ()
    api_key_env: str = "ALIGN_VLLM_API_KEY"
    start_timeout: float = 600.0
    request_timeout: float = 1800.0
    max_restarts: int = 3


def memory_hint(said: str) -> str:
    """The keys of a recipe that an error of vLLM about memory is cured by, to be put behind it; empty for another."""
    words = ("gpu_memory_utilization", "kv cache", "cache blocks", "out of memory", "outofmemory", "free memory on")
    if not any(word in said.lower() for word in words):
        return ""
    return (
        " (the recipe's keys are ppo.rollout.vllm.kv_cache_gib, memory_share on a GPU, max_model_len and max_num_seqs)"
    )
