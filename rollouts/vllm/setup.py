"""How vLLM is set up: our settings and the module in the words of `vllm.LLM` and of our server's command line.

The engine starts with random weights in the form of the module; the first push brings the true ones.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.runtime.peft_model import base_of
from rollouts.errors import RolloutError
from rollouts.settings import VLLMSettings
from rollouts.vllm.client import SHORT, Client, ServerGone
from rollouts.weights import checkpoint_names

GIB = 2**30
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def write_config(model: nn.Module, folder: Path) -> None:
    """`config.json` alone: no tokenizer and no generation config, and nothing of how the trainer holds the weights.

    Raises:
        RolloutError: a model without a transformers configuration.
    """
    base = base_of(model)
    if not hasattr(base, "config"):
        raise RolloutError(f"{type(base).__name__} has no configuration: vLLM needs a transformers model")
    config = copy.deepcopy(base.config)
    config.architectures = [architecture] if (architecture := architecture_of(base)) else config.architectures
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # pushed weights are whole
    if config.tie_word_embeddings and "lm_head.weight" in checkpoint_names(model):
        config.tie_word_embeddings = False  # an adapter on one of the two parts them
    config.eos_token_id = None  # vLLM would hold it back until min_tokens although no stop id of the call
    config.save_pretrained(folder)


def architecture_of(base: nn.Module) -> str | None:
    """The model's class in transformers; FSDP makes one of its own around it."""
    names = (cls.__name__ for cls in type(base).__mro__ if cls.__module__.startswith("transformers.models."))
    return next(names, None)


def dtype_of(model: nn.Module, settings: VLLMSettings) -> str:
    """vLLM's name of the dtype that the engine computes in."""
    if settings.dtype != "auto":
        return settings.dtype
    floating = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]
    base = base_of(model)
    quantized = getattr(base, "is_quantized", False)
    dtype = getattr(base.config, "dtype", None) if quantized or not floating else floating[0]
    return str(dtype or torch.bfloat16).removeprefix("torch.")


def engine_arguments(
    folder: Path,
    model: nn.Module,
    settings: VLLMSettings,
    *,
    on_cpu: bool,
    mode: str,
    adapters: bool,
    mask: bool,
    chosen: bool,
) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`.

    Args:
        on_cpu: vLLM's platform is the CPU.
        mode: its `logprobs_mode`.
        adapters: LoRA adapters are pushed by themselves.
        mask: sampling masks are recorded.
        chosen: somebody else chooses tokens (`rollouts.vllm.chooser`).
    """
    length = room_for(model, settings)
    arguments: dict[str, Any] = {
        "model": str(folder),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": dtype_of(model, settings),
        "max_model_len": length,
        "max_num_seqs": settings.max_num_seqs,
        "enable_prefix_caching": settings.prefix_caching,
        "enforce_eager": settings.eager or on_cpu,
        "seed": settings.seed,
        "logprobs_mode": mode,
        "disable_log_stats": True,
    }
    if not on_cpu:
        arguments |= {"gpu_memory_utilization": settings.memory_share, "enable_sleep_mode": settings.sleep}
    else:
        # A prompt in pieces would set back its seeded generator, which those of CPUs cannot (vLLM 0.32).
        arguments |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(length, 4096)}
    gib = settings.kv_cache_gib if settings.kv_cache_gib is not None or not on_cpu else 1.0
    if gib is not None:
        arguments["kv_cache_memory_bytes"] = int(gib * GIB)
    if adapters:
        rank = max(config.r for config in model.peft_config.values())
        fitting = next((size for size in LORA_RANKS if size >= rank), None)
        if fitting is None:
            raise RolloutError(f"vLLM takes LoRA adapters up to rank {LORA_RANKS[-1]}, got {rank}: set adapters: merge")
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": fitting}
    if chosen:
        arguments["logits_processors"] = ["rollouts.vllm.chooser:Chooser"]
    if mask:
        arguments["return_sampling_mask"] = True
    return arguments


def room_for(model: nn.Module, settings: VLLMSettings) -> int:
    """vLLM's `max_model_len`: one token more than ours where the model has room, since scoring draws one.

    Raises:
        RolloutError: longer than the model's positions.
    """
    positions = getattr(base_of(model).config, "max_position_embeddings", None)
    if positions is None:
        return settings.max_model_len + 1
    if settings.max_model_len > positions:
        raise RolloutError(
            f"max_model_len {settings.max_model_len} is longer than the model's {positions} positions: shorten "
            "prompts or replies"
        )
    return min(settings.max_model_len + 1, positions)


def serve_arguments(model: nn.Module, folder: Path, settings: VLLMSettings, mode: str) -> list[str]:
    """Of `python -m rollouts.vllm.serve`."""
    words = ["--model", str(folder), "--load-format", "dummy", "--dtype", dtype_of(model, settings)]
    words += ["--max-model-len", str(room_for(model, settings)), "--memory-share", str(settings.memory_share)]
    words += ["--tensor-parallel", str(settings.tensor_parallel), "--max-num-seqs", str(settings.max_num_seqs)]
    words += ["--seed", str(settings.seed), "--logprobs", mode.removesuffix("_logprobs")]
    words += [] if settings.kv_cache_gib is None else ["--kv-cache-gib", str(settings.kv_cache_gib)]
    words += [] if settings.prefix_caching else ["--no-prefix-caching"]
    words += ["--eager"] if settings.eager else []
    words += ["--sleep"] if settings.sleep else []
    return words


def described(client: Client, config: Any, settings: VLLMSettings, mode: str) -> dict[str, Any]:
    """What a server is (`WeightPuller.align_describe`).

    Args:
        config: of the policy's text model.
        mode: vLLM's `logprobs_mode` that is needed.

    Raises:
        RolloutError: it cannot be reached, or is not what is needed.
    """
    url = client.url
    try:
        answer = client.ask("/collective_rpc", {"method": "align_describe"}, timeout=SHORT)
    except ServerGone as gone:
        raise RolloutError(f"the vLLM server {url} {gone}: is `python -m rollouts.vllm.serve` running there?") from None
    fact: dict[str, Any] = answer["results"][0]
    policy = {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "layers": config.num_hidden_layers}
    for name, value in policy.items():
        if fact[name] != value:
            raise RolloutError(
                f"the vLLM server {url} holds another model: its {name} is {fact[name]}, the policy's is {value}"
            )
    if fact["max_model_len"] < settings.max_model_len:
        raise RolloutError(
            f"the vLLM server {url} takes {fact['max_model_len']} tokens, max_model_len asks for "
            f"{settings.max_model_len}: start it with --max-model-len {settings.max_model_len}"
        )
    if fact["logprobs"] != mode:
        kind = mode.removesuffix("_logprobs")
        raise RolloutError(f"the vLLM server {url} must be started with --logprobs {kind} for this temperature")
    return fact
