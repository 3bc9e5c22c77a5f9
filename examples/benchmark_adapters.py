"""Time and memory of a training step: all weights, LoRA and QLoRA on one model, with the optimizers one can name.

    python examples/benchmark_adapters.py [--model PATH] [--rows N] [--length N] [--steps N] [--checkpoint]

Without `--model` a small random Qwen2 is made. Batches are random token ids, the same for all. On CUDA `peak GiB` is
what torch allocated at most during the steps, weights included; on a CPU there is no such figure, and `held GiB` counts
what stays between steps: weights, gradients and the optimizer's state. The loss is that of the last step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ARMS = (
    ("none", "adamw"),
    ("none", "adamw_8bit"),
    ("lora", "adamw"),
    ("qlora", "adamw"),
    ("qlora", "paged_adamw_8bit"),
)
GIB = 2**30


def small_model(folder: Path) -> Path:
    """A random Qwen2 of 6 million parameters."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=4096, num_key_value_heads=2, **shape))
    model.save_pretrained(folder)
    return folder


def tensors(value: Any) -> Iterator[Any]:
    """Every tensor in an optimizer's state."""
    if hasattr(value, "untyped_storage"):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors(inner)


def held(model: Any, optimizer: Any) -> float:
    """GiB of weights, gradients and moments; a 4-bit weight counts what it occupies, its scales too."""
    found = []
    for parameter in model.parameters():
        found += [parameter.data, *([] if parameter.grad is None else [parameter.grad])]
        if getattr(parameter, "quant_state", None) is not None:
            found += list(tensors(parameter.quant_state.as_dict()))
    found += [tensor for state in optimizer.state.values() for tensor in tensors(state)]
    return sum(tensor.numel() * tensor.element_size() for tensor in found) / GIB


def measure(path: Path, adapter: str, optimizer: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step, memory, the share of trained parameters and the last loss of one arm."""
    import torch
    from accelerate import Accelerator

    from align.models.adapters import trained_share
    from align.models.load import load_causal_lm
    from align.recipe.fields import OptimSection
    from align.recipe.model_section import ModelSection
    from align.trainers.optimization import TrainedModel

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    cuda = accelerator.device.type == "cuda"
    named = {"path": str(path), "adapter": adapter, "dtype": asked.dtype, "gradient_checkpointing": asked.checkpoint}
    loaded = load_causal_lm(path, ModelSection.model_validate(named)).train()
    trained, total = trained_share(loaded)
    section = OptimSection(learning_rate=1e-4 if adapter != "none" else 1e-5, optimizer=optimizer)
    model = TrainedModel(loaded, section, accelerator, total_steps=asked.steps)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    generator, seconds, kept = torch.Generator().manual_seed(0), [], 0.0
    for step in range(asked.steps):
        ids_BT = torch.randint(0, loaded.config.vocab_size, (asked.rows, asked.length), generator=generator)
        began = time.perf_counter()
        loss = model.module(input_ids=ids_BT.to(accelerator.device), labels=ids_BT.to(accelerator.device)).loss
        accelerator.backward(loss)
        model.clip()
        kept = held(model.raw, model.optimizer) if step == asked.steps - 1 else 0.0  # when there are moments
        model.step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated() / GIB if cuda else kept
    return {
        "adapter": adapter,
        "optimizer": optimizer,
        "seconds": statistics.median(seconds[1:] or seconds),
        "peak GiB" if cuda else "held GiB": memory,
        "trained": trained / total,
        "loss": float(loss),
    }


def main(folder: str | Path = "runs/examples/benchmark_adapters", words: list[str] | None = None) -> list[dict]:
    """Measure every arm, print a line each, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder or hub id of a causal language model")
    for flag, default in (("--rows", 4), ("--length", 256), ("--steps", 5)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--checkpoint", action="store_true", help="gradient checkpointing")
    asked = parser.parse_args(words)
    path = asked.model or small_model(Path(folder) / "model")
    found = []
    for adapter, optimizer in ARMS:
        found.append(measure(path, adapter, optimizer, asked))
        print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found[-1].items()}))
    return found


if __name__ == "__main__":
    main()
