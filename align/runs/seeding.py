"""Seeds, and the state of all random generators for checkpoints."""

from __future__ import annotations

import hashlib
import random
from typing import Any


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch (all devices)."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derive(seed: int, *names: str | int) -> int:
    """A seed of its own for a purpose, e.g. `derive(seed, "rollout", iteration, rank)`.

    Stable over processes, machines and versions (unlike `hash`); in [0, 2**32), which every generator takes.
    """
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def rng_state() -> dict[str, Any]:
    """The state of Python's, numpy's and torch's generators, of tensors and plain values: `torch.load` with
    weights_only=True reads it back."""
    import numpy
    import torch

    version, words, gauss = random.getstate()
    kind, key, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "kind": str(kind),
            "key": torch.from_numpy(key.astype(numpy.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Puts back what `rng_state` gave. The devices' part is skipped where their number differs."""
    import numpy
    import torch

    python, np = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    key = np["key"].numpy().astype(numpy.uint32)
    numpy.random.set_state((np["kind"], key, np["position"], np["has_gauss"], np["cached"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
