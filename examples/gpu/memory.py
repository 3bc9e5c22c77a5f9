"""`align plan` against what torch allocated: the recipes made for one card, with their widths and lengths of prompts,
fewer layers and shorter runs. The plan is of the same, so it must hold within a share of itself."""

from __future__ import annotations

from functools import partial
from typing import Any

from check import Here
from stages import TINY, need, prepare, run, shape_of

GIB = 2**30
OFF = 0.15  # of what was measured
RECIPES = {  # its model, its family, layers here
    "qwen2.5_0.5b_lora_24gb": ("Qwen2.5-0.5B", "Qwen2", 6),
    "qwen2.5_1.5b_full_80gb": ("Qwen2.5-1.5B", "Qwen2", 6),
    "qwen2.5_7b_qlora_24gb": ("Qwen2.5-7B", "Qwen2", 3),
    "qwen3_8b_qlora_48gb": ("Qwen3-8B", "Qwen3", 3),
}
COMMON = ["model.path=model", "output_dir=run", "data_root=."]
WORDS = {
    "sft": "sft.data=[sft.jsonl] sft.eval_data=[] sft.holdout=0 sft.max_steps=2 sft.warmup_steps=0 "
    "sft.eval_num_replies=0",
    "rm": "rm.data=[rm.jsonl] rm.eval_data=[] rm.holdout=0 rm.init_from=model rm.max_steps=2 rm.center_scores=false "
    "rm.reference_data=[]",
    "ppo": "ppo.data=[ppo.jsonl] ppo.eval_data=[] ppo.init_from=model ppo.reward_from=reward ppo.critic_from=reward "
    "ppo.num_iterations=1 ppo.rollout_batch_size=16 ppo.num_mini_batches=1 ppo.critic_warmup_steps=0 "
    "ppo.rollout.max_completion_length=256",
}
SMALL = ["sft.max_length=64", "rm.max_length=64", "ppo.rollout.max_prompt_length=48", "ppo.rollout_batch_size=2"]
SMALL += ["ppo.rollout.max_completion_length=8", "ppo.micro_batch_size=4"]
DRY = tuple(zip(RECIPES, ("ppo", "sft", "rm", "ppo"), strict=True))


def stage(here: Here, name: str, kind: str) -> dict[str, Any]:
    """Planned and measured peak of one. A dry run plans all, and runs the stages of `DRY`."""
    from align.recipe import load_recipe

    model, family, layers = RECIPES[name]
    whole = load_recipe(name)
    if whole.model.adapter == "qlora":
        need("bitsandbytes", here, on_cpu=True)
    words = [*COMMON, *WORDS[kind].split()]
    if kind != "ppo":
        words.append(f"{kind}.batch_size={2 * getattr(whole, kind).micro_batch_size}")
    shape = {**shape_of(model), "num_hidden_layers": layers}
    if here.dry:
        shape, words = TINY, [*words, *(word for word in SMALL if word.startswith(kind))]
    made = {"family": family, "dtype": whole.model.dtype}
    if here.dry and (name, kind) not in DRY:
        _, plan = prepare(here, kind, words, shape, name, **made)
        return {"planned GiB": plan.peak.bytes / GIB, "when": plan.peak.name}
    took = run(here, kind, words, shape, name, **made)
    planned, peak = took["plan"].peak, took["peak"]
    found = {"planned GiB": planned.bytes / GIB, "when": planned.name, "layers": shape["num_hidden_layers"]}
    if here.dry:
        return found
    found |= {"measured GiB": peak / GIB, "off": planned.bytes / peak - 1}
    if abs(found["off"]) > OFF:
        raise ValueError("; ".join(f"{key} {value}" for key, value in found.items()))
    return found


CASES = {f"{name}, {kind}": partial(stage, name=name, kind=kind) for name in RECIPES for kind in ("ppo",)}
CASES |= {f"{name}, {kind}": partial(stage, name=name, kind=kind) for kind in ("sft", "rm") for name in RECIPES}
