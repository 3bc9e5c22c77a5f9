"""How fast: PPO at the shapes of Qwen2.5-0.5B and 1.5B, by phase, and SFT in the ways that rows can be packed. Weights
are random and replies all have their full length, so FLOPs are those that `align plan` counts."""

from __future__ import annotations

from functools import partial
from typing import Any

from check import Here, Skip
from environment import seconds
from stages import SHORT, TINY, need, run, shape_of

MODELS = ("Qwen2.5-0.5B", "Qwen2.5-1.5B")
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "L4": 121e12}  # dense bf16
PPO = ["model.mixed_precision=bf16", "ppo.num_iterations=3", "ppo.logging_steps=1", "ppo.rollout_batch_size=64"]
PPO += ["ppo.micro_batch_size=null", "ppo.micro_batch_tokens=16384", "ppo.rollout.batch_size=128", "ppo.log_samples=0"]
PPO += ["ppo.rollout.max_prompt_length=256", "ppo.rollout.max_completion_length=256"]
PPO += ["ppo.rollout.min_completion_length=256"]
SFT = ["model.mixed_precision=bf16", "sft.max_length=2048", "sft.max_steps=null", "sft.num_train_epochs=1"]
ROWS = (640, 256)  # tokens, and a tenth less of every other one; how many
PACKED = ["sft.packing=true", "sft.batch_size=8", "sft.micro_batch_size=4"]  # about as many tokens as padded ones
WAYS = {
    "packed": PACKED,
    "padded": ["sft.batch_size=32", "sft.micro_batch_size=16"],
    "packed, flash-attn": [*PACKED, "model.attn_implementation=flash_attention_2"],
}


def peak_flops(here: Here) -> tuple[float, str]:
    """Of dense bf16 products: the vendor's figure, or what a large product reaches."""
    import torch

    if not here.dry:
        name = torch.cuda.get_device_name()
        for known, flops in PEAKS.items():
            if known in name.split() or known in name.replace("-", " ").split():
                return flops, f"{flops / 1e12:.0f} TFLOP/s"
    size = 128 if here.dry else 8192
    left = torch.randn(size, size, device=here.device, dtype=torch.bfloat16)
    found = 2 * size**3 / seconds(here, lambda: left @ left)
    return found, f"{found / 1e12:.3g} TFLOP/s, measured"


def ppo(here: Here, model: str) -> dict[str, Any]:
    """Seconds and tokens a second by phase of the third iteration; the update's share of the card's peak."""
    if here.dry and model != MODELS[0]:
        raise Skip("a dry run's models are all the same")
    shape = TINY if here.dry else shape_of(model)
    took = run(here, "ppo", [*PPO, *(["ppo.rollout_batch_size=2", *SMALL] if here.dry else [])], shape)
    found, metrics = {}, took["metrics"]
    for phase in ("rollout", "score", "experience", "update"):
        found[f"{phase}, s"] = metrics[f"seconds/{phase}"]
    found["tokens/s"] = metrics["tokens_per_second"]
    found["drawn tokens/s"] = took["plan"].cost.phases[0].tokens / metrics["seconds/rollout"]
    updates = [phase.flops for phase in took["plan"].cost.phases if phase.name.endswith("update")]
    peak, words = peak_flops(here)
    found["MFU of the update"] = sum(updates) / metrics["seconds/update"] / peak
    return found | {"of": words, "peak GiB": took["peak"] / 2**30, "planned GiB": took["plan"].peak.bytes / 2**30}


SMALL = [word for word in SHORT if word.startswith("ppo")] + ["ppo.rollout.min_completion_length=8"]


def sft(here: Here, way: str) -> dict[str, Any]:
    """Tokens a second of an epoch over the same rows."""
    if "flash" in way:
        need("flash_attn", here)
    shape = TINY if here.dry else shape_of("Qwen2.5-0.5B")
    rows = (40, 16) if here.dry else ROWS
    words = [*SFT, *WAYS[way], *(["sft.max_length=128", "sft.micro_batch_size=4"] if here.dry else [])]
    summary = run(here, "sft", words, shape, rows=rows)["summary"]
    tokens, taken = (rows[0] - rows[0] // 20) * rows[1], summary["train_seconds"]
    return {"tokens/s": tokens / taken, "s": taken, "steps": summary["steps"]}


CASES = {f"ppo, {model}": partial(ppo, model=model) for model in MODELS}
CASES |= {f"sft, {way}": partial(sft, way=way) for way in WAYS}
