"""From a trainer's module and our settings to a vLLM engine in this process, without weights of its own yet."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rollouts.errors import RolloutError
from rollouts.settings import VLLMSettings, memory_hint
from rollouts.vllm.process_guard import PrivateWorld, quiet, undisturbed
from rollouts.weights import checkpoint_names

if TYPE_CHECKING:
    import vllm

GIB = 2**30
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def plain_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def write_config(model: nn.Module, folder: Path) -> None:
    """`config.json` alone: no tokenizer and no generation config, and nothing of how the trainer holds the weights.

    Raises:
        RolloutError: a model without a transformers configuration.
    """
    base = plain_model(model)
    if not hasattr(base, "config"):
        raise RolloutError(f"{type(base).__name__} has no configuration: vLLM needs a transformers model")
    config = copy.deepcopy(base.config)
    names = [cls.__name__ for cls in type(base).__mro__ if cls.__module__.startswith("transformers.models.")]
    config.architectures = names[:1] or config.architectures  # FSDP makes a class of its own around the model's
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # pushed weights are whole
    if config.tie_word_embeddings and "lm_head.weight" in checkpoint_names(model):
        config.tie_word_embeddings = False  # an adapter on one of the two parts them
    config.eos_token_id = None  # vLLM would hold it back until min_tokens although no stop id of the call
    config.save_pretrained(folder)


def dtype_of(model: nn.Module, settings: VLLMSettings) -> str:
    """vLLM's name of the dtype that the engine computes in."""
    if settings.dtype != "auto":
        return settings.dtype
    floating = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]
    base = plain_model(model)
    quantized = getattr(base, "is_quantized", False)
    dtype = getattr(base.config, "dtype", None) if quantized or not floating else floating[0]
    return str(dtype or torch.bfloat16).removeprefix("torch.")


def engine_arguments(
    folder: Path, model: nn.Module, settings: VLLMSettings, *, on_cpu: bool, mode: str, adapters: bool, mask: bool
) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`.

    Args:
        on_cpu: vLLM's platform is the CPU.
        mode: its `logprobs_mode`.
        adapters: LoRA adapters are pushed by themselves.
        mask: sampling masks are recorded.
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
    if mask:
        arguments["return_sampling_mask"] = True
    return arguments


def room_for(model: nn.Module, settings: VLLMSettings) -> int:
    """vLLM's `max_model_len`: one token more than ours where the model has room, since scoring draws one.

    Raises:
        RolloutError: longer than the model's positions.
    """
    positions = getattr(plain_model(model).config, "max_position_embeddings", None)
    if positions is None:
        return settings.max_model_len + 1
    if settings.max_model_len > positions:
        raise RolloutError(
            f"max_model_len {settings.max_model_len} is longer than the model's {positions} positions: shorten "
            "prompts or replies"
        )
    return min(settings.max_model_len + 1, positions)


def start(model: nn.Module, settings: VLLMSettings, **options: Any) -> vllm.LLM:
    """A vLLM engine with random weights, in this process, alone on this rank's device.

    Args:
        options: `mode`, `adapters` and `mask` of `engine_arguments`.

    Raises:
        RolloutError: vLLM is not installed, or refuses the settings.
    """
    variables = {"VLLM_CPU_KVCACHE_SPACE": None} if settings.kv_cache_gib is not None else {}
    if options["mask"]:
        variables["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    with undisturbed(**variables), tempfile.TemporaryDirectory(prefix="align-vllm-") as folder:
        quiet()
        warnings.simplefilter("ignore")  # of vLLM's own code while it is read
        try:
            import vllm
            from vllm.platforms import current_platform

            from rollouts.vllm.executor import LocalExecutor
        except ImportError as error:
            raise RolloutError(
                f"vLLM cannot be imported ({error}): install it by `make install-vllm` or "
                "`pip install 'align-rlhf[vllm]'`, or set ppo.rollout.engine: hf"
            ) from error
        on_cpu = current_platform.is_cpu()
        if on_cpu and options["mask"]:
            raise RolloutError(
                "vLLM on a CPU does not record which ids could be drawn (policy_support: nucleus needs them): set "
                "ppo.rollout.engine: hf"
            )
        write_config(model, Path(folder))
        arguments = engine_arguments(Path(folder), model, settings, on_cpu=on_cpu, **options)
        try:
            with PrivateWorld.joined():
                return vllm.LLM(**arguments, distributed_executor_backend=LocalExecutor)
        except Exception as error:
            said = _last_line(error)
            raise RolloutError(f"vLLM could not start: {said}{memory_hint(said)}") from error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:600] or 'no message'}"
