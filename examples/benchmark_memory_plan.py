"""Planned against measured memory: stages of recipes on random weights of made-up shapes, each in a process of its own.

    python examples/benchmark_memory_plan.py [CASE ...]     2 to 5 GiB and one to five minutes a case; default: all

On a CPU the measure is the process's resident memory above what it holds after its imports (the kernel's high-water
mark, set back then, and a thread's samples beside it), up to the saving of the model, which a GPU's memory has no part
in. glibc is told to give tensors of 128 KiB and more pages of their own (MALLOC_MMAP_THRESHOLD_) and to keep one arena
(MALLOC_ARENA_MAX), so that freed memory goes back to the system; else its pools would be measured, not the tensors.
On a GPU it is `torch.cuda.max_memory_allocated`; the cases are then Qwen2.5's shapes.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

A = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
A |= {"num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "A 155M": A,
    "B 335M": {**A, "num_hidden_layers": 24},
    "C 1.2B": {**A, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24},
    "D 86M": {**A, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 12},
    "E wide": {**A, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8}
    | {"vocab_size": 152064, "tie_word_embeddings": True},
    "tiny": {**A, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000},
}
SFT = ["sft.micro_batch_size=2", "sft.batch_size=2", "sft.max_length=256"]
RM = ["rm.micro_batch_size=1", "rm.batch_size=2", "rm.max_length=192"]
CHECKPOINTED = "model.gradient_checkpointing=true"
LORA = ["model.adapter=lora"]
QLORA = ["model.adapter=qlora", "model.quantization.compute_dtype=float32"]
CASES: dict[str, tuple[str, str, list[str]]] = {  # stage, shape, what the recipe is told
    "sft-full": ("sft", "A 155M", SFT),
    "sft-full-accumulated-checkpointed": ("sft", "A 155M", [*SFT, "sft.batch_size=4", CHECKPOINTED]),
    "sft-full-wide-vocabulary": ("sft", "E wide", [*SFT, "sft.max_length=384"]),
    "sft-full-autocast": ("sft", "A 155M", [*SFT, "model.mixed_precision=bf16"]),
    "sft-full-eager": ("sft", "A 155M", [*SFT, "model.attn_implementation=eager"]),
    "rm-full": ("rm", "A 155M", RM),
    "sft-lora": ("sft", "B 335M", [*SFT, *LORA]),
    "sft-qlora": ("sft", "C 1.2B", [*SFT, *QLORA]),
    "ppo-full": ("ppo", "D 86M", []),
    "rm-lora": ("rm", "B 335M", [*RM, "rm.batch_size=1", *LORA]),
    "rm-qlora": ("rm", "C 1.2B", [*RM, *QLORA]),
    "ppo-lora-apart": ("ppo", "B 335M", [*LORA, "ppo.shared_backbone=false"]),
    "ppo-lora": ("ppo", "B 335M", LORA),
    "ppo-qlora": ("ppo", "C 1.2B", QLORA),
}
TINY = {"tiny": ("sft", "tiny", [*SFT, "sft.max_length=64"])}  # to see that this file runs
ON_GPU = {
    f"{stage}-{adapter}-{size}": (
        *(stage, f"Qwen2.5-{size}"),
        [*SFT, *RM, f"model.adapter={adapter}", "model.mixed_precision=bf16", f"model.dtype={dtype}"],
    )
    for stage in ("sft", "rm", "ppo")
    for adapter, size, dtype in (
        *(("none", "0.5B", "float32"), ("lora", "0.5B", "bfloat16"), ("lora", "1.5B", "bfloat16")),
        *(("none", "1.5B", "float32"), ("qlora", "7B", "bfloat16")),
    )
}
RECIPE = """name: measured
output_dir: run
model: {path: model}
sft: {data: [sft.jsonl], holdout: 0, max_length: 512, batch_size: 2, micro_batch_size: 2, max_steps: 2, \
learning_rate: 1.0e-5}
rm: {data: [rm.jsonl], holdout: 0, init_from: model, max_length: 512, batch_size: 1, micro_batch_size: 1, \
max_steps: 2, learning_rate: 1.0e-5}
ppo: {data: [ppo.jsonl], init_from: model, reward_from: reward, critic_from: reward, num_iterations: 2, \
rollout_batch_size: 2, num_mini_batches: 1, micro_batch_size: 2, critic_warmup_steps: 0, \
rollout: {num_generations: 2, max_prompt_length: 96, max_completion_length: 32}}
"""
IMPORTS = ("align.trainers.sft", "align.trainers.reward", "align.trainers.ppo", "align.models.load", "peft")
IMPORTS += ("transformers.models.qwen2.modeling_qwen2", "bitsandbytes")
ROOT = Path(__file__).resolve().parents[1]
QUIET = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 17), "MALLOC_TRIM_THRESHOLD_": str(1 << 17)}


def make_models(shape: dict[str, Any], recipe: Any, family="Qwen2", device="cpu", dtype="float32") -> None:
    """A model and a reward model, random, made on `device`, and a tokenizer of single bytes, into the working folder;
    the reward model is an adapter on the model where ppo's models are to share it."""
    import torch
    import transformers

    from align.models.adapters import save_pretrained
    from align.models.load import load_reward_model
    from align.models.tokenizer import train_tokenizer
    from reward.model import RewardModel

    tokenizer = train_tokenizer([], 259)
    tokens = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": None}
    config = getattr(transformers, f"{family}Config")(**shape, max_position_embeddings=4096, **tokens)
    torch.manual_seed(0)
    with torch.device(device):
        model = getattr(transformers, f"{family}ForCausalLM")(config).to(getattr(torch, dtype))
    model.save_pretrained("model")
    if recipe.model.adapter == "none" or recipe.ppo is None or recipe.ppo.shared_backbone is False:
        RewardModel(model.model).save_pretrained("reward")
    else:
        save_pretrained(load_reward_model("model", recipe.model), "reward")
    for folder in ("model", "reward"):
        tokenizer.save_pretrained(folder)


def make_rows(stage: str, length: int, count: int = 16) -> None:
    """Rows of which every other one is just `length` tokens long (ChatML adds 22), the others a tenth shorter."""

    def text(tokens: int) -> str:
        return "".join(chr(97 + at * 7 % 26) for at in range(tokens - 22))

    def row(tokens: int) -> dict[str, Any]:
        if stage == "sft":
            return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text(tokens)}]}
        if stage == "rm":
            return {"prompt": "q", "chosen": text(tokens), "rejected": text(tokens - 20)}
        return {"prompt": text(tokens + 3)}  # 19 without a reply

    rows = [json.dumps(row(tokens)) + "\n" for tokens in (length, length - length // 10) * (count // 2)]
    Path(f"{stage}.jsonl").write_text("".join(rows))


def load(stage: str, words: list[str]) -> Any:
    """The recipe of one stage."""
    from align.recipe import load_recipe

    Path("recipe.yaml").write_text(RECIPE)
    return load_recipe("recipe.yaml", [*words, *(f"{name}=null" for name in ("sft", "rm", "ppo") if name != stage)])


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


class Watch(threading.Thread):
    """Reads resident memory and the kernel's high-water mark of it until the stage begins to save its model."""

    def __init__(self, out_dir: Path):
        super().__init__(daemon=True)
        self.out_dir, self.sampled, self.highest = out_dir, 0, 0

    def run(self) -> None:
        while not any("model" in name for name in (os.listdir(self.out_dir) if self.out_dir.is_dir() else ())):
            self.sampled, self.highest = max(self.sampled, status("VmRSS")), status("VmHWM")
            time.sleep(0.005)


def measure(stage: str, shape: str, words: list[str]) -> None:
    """Make what the case needs, in another process, run the stage, and print what it took and what was planned."""
    import torch

    from align.plan import plan_stages
    from align.recipe import STAGES
    from align.runtime.resolve import resolve

    recipe = load(stage, words)
    section = getattr(recipe, stage)
    make_rows(stage, section.rollout.max_prompt_length if stage == "ppo" else section.max_length)
    subprocess.run([sys.executable, __file__, "--make", shape, stage, *words], check=True)
    (plan,) = plan_stages(recipe, device="gpu" if torch.cuda.is_available() else "cpu")
    for name in IMPORTS:
        importlib.import_module(name)
    run = resolve(STAGES[stage].run)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before, watch, began = status("VmRSS"), Watch(Path("run") / stage), time.perf_counter()
    watch.start()
    run(recipe, stage)
    measured = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else watch.highest - before
    found = {"measured": measured, "sampled": watch.sampled - before, "planned": plan.peak.bytes}
    print("RESULT " + json.dumps(found | {"when": plan.peak.name, "seconds": round(time.perf_counter() - began)}))


def run_case(name: str, cases: dict[str, tuple[str, str, list[str]]]) -> None:
    """One case in a process and a folder of its own; prints its line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--measure", name]
        env = {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        print(f"{name:36} failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}", flush=True)
        return
    found = json.loads(line.removeprefix("RESULT "))
    off = found["planned"] / found["measured"] - 1
    sizes = " ".join(f"{found[key] / 2**30:8.2f}" for key in ("planned", "measured", "sampled"))
    print(f"{name:36} {cases[name][1]:8} {sizes} {off:+7.1%} {found['seconds']:5} s  {found['when']}", flush=True)


def main() -> None:
    import torch

    cases = (ON_GPU if torch.cuda.is_available() else CASES) | TINY
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(cases))
    parser.add_argument("--make", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        from align.plan.shapes import shipped_shapes

        name, stage, *words = args.make
        shape = SHAPES.get(name) or {key: getattr(shipped_shapes()[name], key) for key in A}
        make_models(shape, load(stage, words))
    elif args.measure:
        measure(*cases[args.measure])
    else:
        print(f"{'case':36} {'shape':8} {'planned':>8} {'measured':>8} {'sampled':>8}     off   GiB")
        for name in args.cases or [name for name in cases if name not in TINY]:
            run_case(name, cases)


if __name__ == "__main__":
    main()
