"""Every stage on a tiny model: whatever is on the wrong device stops it here. Lengths are too short to measure."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from check import ROOT, Here, Skip
from stages import SHORT, TINY, launched, need, prepare, run

SHOWN = ("loss", "accuracy", "policy/ratio_max", "kl/reply", "value/loss", "grad_norm", "policy/grad_norm")
SHOWN += ("ptx/loss", "eval/score", "memory/peak_gib")
BF16 = ["model.mixed_precision=bf16"]
LORA = ["model.adapter=lora", "model.dtype=bfloat16"]
QLORA = ["model.adapter=qlora", "model.dtype=bfloat16"]
PAGED = ["ppo.policy.optimizer=paged_adamw_8bit", "ppo.critic.optimizer=paged_adamw_8bit"]
PTX = ["ppo.ptx_coef=0.1", "ppo.ptx_data=[text.jsonl]", "ppo.ptx_max_length=32", "ppo.eval_data=[ppo.jsonl]"]
PTX += ["ppo.ema_decay=0.9", "ppo.policy_support=nucleus", "ppo.rollout.top_p=0.9", "ppo.evaluation.limit=2"]
STAGES = {
    "sft": ("sft", []),
    "sft, packed": ("sft", ["sft.packing=true"]),
    "sft, checkpointed": ("sft", ["model.gradient_checkpointing=true"]),
    "sft, LoRA": ("sft", LORA),
    "sft, QLoRA, paged 8-bit moments": ("sft", [*QLORA, "sft.optimizer=paged_adamw_8bit"]),
    "rm": ("rm", []),
    "rm, groups": ("rm", ["rm.share_prompts=true", "rm.lm_weight=0.1"]),
    "rm, LoRA": ("rm", LORA),
    "ppo": ("ppo", []),
    "ppo, ptx, nucleus, average, evaluation": ("ppo", PTX),
    "ppo, without a critic, KL in the loss": ("ppo", ["ppo.advantage=grpo", "ppo.kl_in=loss", "ppo.critic_from=null"]),
    "ppo, padded rows and generate": ("ppo", ["model.attn_implementation=eager"]),
    "ppo, float32": ("ppo", ["model.mixed_precision=no"]),
    "ppo, LoRA on one backbone": ("ppo", LORA),
    "ppo, QLoRA, paged 8-bit moments": ("ppo", [*QLORA, *PAGED]),
    "ppo, idle parts in the host's memory": ("ppo", ["ppo.offload=[reference,reward,optimizer]"]),
}
DRY = ("sft, packed", "sft, LoRA", "rm, groups", "ppo, ptx, nucleus, average, evaluation")
DRY += ("ppo, without a critic, KL in the loss", "ppo, LoRA on one backbone")
FSDP = ["--num_processes", "1", "--use_fsdp", "--fsdp_version", "2"]
FSDP += ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]


OTHERS: dict[str, dict[str, Any]] = {
    "base": {"data": ["text.jsonl"], "holdout": 0},
    "pmp": {"data": ["rm.jsonl"], "holdout": 0},
    "rejection": {
        "data": ["ppo.jsonl"],
        "reward": {"kind": "function", "function": "rule.py:letters"},
        "rollout": {"num_generations": 2, "max_prompt_length": 48, "max_completion_length": 8, "batch_size": 8},
    },
}


def stage(here: Here, name: str) -> dict[str, Any]:
    """Two steps of one. A dry run does them for `DRY`, and prepares the others."""
    kind, words = STAGES[name]
    if any("qlora" in word for word in words):
        need("bitsandbytes", here, on_cpu=not any("paged" in word for word in words))
    Path("text.jsonl").write_text("".join(json.dumps({"text": f"text {at} " * 9}) + "\n" for at in range(16)))
    if here.dry and name not in DRY:
        _, plan = prepare(here, kind, [*SHORT, *BF16, *words], TINY)
        return {"planned GiB": plan.peak.bytes / 2**30}
    took = run(here, kind, [*SHORT, *BF16, *words], TINY)
    found = {key: took["metrics"][key] for key in SHOWN if key in took["metrics"]}
    if kind == "ppo" and not 0.999 < found["policy/ratio_max"] < 1.5:
        raise ValueError(f"policy/ratio_max {found['policy/ratio_max']}")
    if not here.dry and took["peak"] < 2**20:
        raise RuntimeError("nothing was on the card")
    return found


def other(here: Here, name: str) -> dict[str, Any]:
    """Two steps of a stage that the small recipe does not have: those of the supervised ones, a round by a rule."""
    from stages import metrics, plans, recipe_of

    from align.recipe import Recipe
    from align.recipe.registry import STAGES as REGISTRY
    from align.runtime.resolve import resolve

    for kind, length in (("ppo", 48), ("rm", 64)):
        plans.make_rows(kind, length)
    plans.make_models(TINY, recipe_of("ppo", []), device=here.device)
    Path("text.jsonl").write_text("".join(json.dumps({"text": f"text {at} " * 9}) + "\n" for at in range(16)))
    Path("rule.py").write_text("def letters(prompts, completions):\n    return [float(len(t)) for t in completions]\n")
    section = {"max_length": 96, "batch_size": 2, "micro_batch_size": 2, "max_steps": 2, "logging_steps": 1}
    model = {"path": "model", "mixed_precision": "bf16"}
    whole = {
        "name": name,
        "output_dir": "run",
        "model": model,
        name: {**section, "learning_rate": 1e-4, **OTHERS[name]},
    }
    summary = resolve(REGISTRY[name].run)(Recipe.model_validate_json(json.dumps(whole)), name)
    metrics(name)
    return {"steps": summary["steps"]}


def sharded(here: Here, kind: str) -> dict[str, Any]:
    """FSDP2 with one rank: wrapping, gathering and its optimizer, without another card."""
    here.card_only("FSDP2 with one rank")
    found = launched(here, kind, [*SHORT, *BF16], TINY, FSDP)
    return {key: found[key] for key in SHOWN if key in found}


def marked(here: Here) -> dict[str, Any]:
    """The tests that are marked `gpu`, but for the long ones and vLLM's."""
    here.card_only("tests marked gpu")
    return pytest_figures("-m", "gpu and not slow", "--ignore", "tests/rollouts/vllm", "tests")


def pytest_figures(*words: str) -> dict[str, Any]:
    """How the tests went. Raises RuntimeError naming those that failed."""
    import subprocess
    import sys
    from xml.etree import ElementTree

    if not (ROOT / "tests").is_dir():
        raise Skip("there are no tests here")
    report = Path("report.xml").resolve()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml", str(report), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n")
    if not report.is_file():
        raise RuntimeError(f"pytest ended with {done.returncode}")
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(cases)} failed: {', '.join(map(str, failed))}")
    return {"passed": sum(case.find("skipped") is None for case in cases), "of": len(cases)}


CASES = {name: partial(stage, name=name) for name in STAGES}
CASES |= {name: partial(other, name=name) for name in OTHERS}
CASES |= {f"{kind}, FSDP2": partial(sharded, kind=kind) for kind in ("sft", "ppo")}
CASES |= {"tests marked gpu": marked}
