"""Stages of recipes on made-up models with random weights, and what they took; what several parts of the check do."""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import benchmark_memory_plan as plans
from check import ROOT, Here, Skip

TINY = {**plans.A, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "vocab_size": 512}
SHORT = ["sft.max_length=64", "rm.max_length=64", "ppo.rollout.max_prompt_length=48", "ppo.logging_steps=1"]
SHORT += ["ppo.rollout.max_completion_length=8", "sft.logging_steps=1", "rm.logging_steps=1"]


def recipe_of(stage: str, words: list[str], source: str = "") -> Any:
    """The recipe of one stage of ppo, sft and rm, with the others out of the way.

    Args:
        source: name of a shipped recipe; default a small one of our own.
    """
    from align.recipe import load_recipe

    if not source:
        Path("recipe.yaml").write_text(plans.RECIPE)
    known = ("sft", "rm", "ppo", *(("pmp",) if source else ()))
    return load_recipe(source or "recipe.yaml", [*words, *(f"{name}=null" for name in known if name != stage)])


def shape_of(model: str) -> dict[str, Any]:
    """What a config says of a public model."""
    from align.plan.shapes import shipped_shapes

    shape = shipped_shapes()[model]
    return {key: getattr(shape, key) for key in (*plans.A, "head_dim")}


def prepare(
    here: Here,
    stage: str,
    words: list[str],
    shape: dict[str, Any],
    source: str = "",
    rows: tuple[int, int] | None = None,
    **made: Any,
) -> tuple[Any, Any]:
    """Make data and models; the recipe of the stage, and what is planned.

    Args:
        rows: tokens of each, and how many; default as long as may be, for two steps.
        made: further arguments of `make_models`.
    """
    from align.plan import plan_stages

    recipe = recipe_of(stage, words, source)
    plans.make_rows(stage, *(rows or rows_for(stage, getattr(recipe, stage))))
    plans.make_models(shape, recipe, device=here.device, **made)
    (plan,) = plan_stages(recipe, device="cpu" if here.dry else "gpu")
    return recipe, plan


def run(here: Here, stage: str, *what: Any, **made: Any) -> dict[str, Any]:
    """Prepare the stage, run it, and say what it took: the summary, the last metrics of each name, seconds, bytes at
    most and what was planned."""
    import torch

    from align.recipe import STAGES
    from align.runtime.resolve import resolve

    recipe, plan = prepare(here, stage, *what, **made)
    gc.collect()
    if not here.dry:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    summary = resolve(STAGES[stage].run)(recipe, stage)
    if not here.dry:
        torch.cuda.synchronize()
    return {
        "summary": summary,
        "metrics": metrics(stage),
        "seconds": time.perf_counter() - began,
        "peak": 0 if here.dry else torch.cuda.max_memory_allocated(),
        "plan": plan,
    }


def rows_for(stage: str, section: Any) -> tuple[int, int]:
    """Tokens of a row and how many, for two steps at full length."""
    if stage == "ppo":
        return section.rollout.max_prompt_length, max(16, section.rollout_batch_size)
    return section.max_length, max(16, 2 * section.batch_size)


def launched(here: Here, stage: str, words: list[str], shape: dict[str, Any], flags: list[str]) -> dict[str, Any]:
    """The stage by its entry script under `accelerate launch`; the last metrics."""
    recipe = recipe_of(stage, words)
    plans.make_rows(stage, *rows_for(stage, getattr(recipe, stage)))
    plans.make_models(shape, recipe, device=here.device)
    others = [f"{name}=null" for name in ("sft", "rm", "ppo") if name != stage]
    command = [sys.executable, "-m", "accelerate.commands.launch", "-q", *flags, str(ROOT / f"align/{stage}.py")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([*command, "recipe.yaml", *words, *others], env=env, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n")
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return metrics(stage)


def metrics(stage: str) -> dict[str, float]:
    """The last number of each name in metrics.jsonl. Raises ValueError where one is not finite."""
    found: dict[str, float] = {}
    for line in (Path("run") / stage / "metrics.jsonl").read_text().splitlines():
        found |= {key: value for key, value in json.loads(line).items() if isinstance(value, int | float)}
    broken = [key for key, value in found.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(f"{', '.join(broken)}: not finite")
    return found


def need(module: str, here: Here, on_cpu: bool = False) -> None:
    """Raises Skip where a package is missing or, in a dry run, can do nothing."""
    from importlib.util import find_spec

    if not on_cpu:
        here.card_only(module)
    if find_spec(module) is None:
        raise Skip(f"{module} is not installed")
