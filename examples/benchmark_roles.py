"""Peak memory of one PPO iteration: four roles on one backbone, four LoRA models, four fully trained models.

    OMP_NUM_THREADS=1 python examples/benchmark_roles.py [--width 768] [--layers 12] [--vocab 16384] [--rank 16]

Every arm runs in a process of its own (Linux): a Qwen2 of random weights in float32, torch's AdamW, replies sampled by
transformers and scored by a reward model, two optimizer steps. `peak` is the largest resident memory of the process
above what it held after the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from align.runtime.peft_model import base_of

ARMS = {
    "full": "four models, all weights trained",
    "lora": "four models with LoRA",
    "roles": "four roles on one backbone",
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MIB = 2**20


def resident(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def shape(options: argparse.Namespace) -> Any:
    """The Qwen2 of the options."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=options.vocab,
        hidden_size=options.width,
        intermediate_size=options.width * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=max(2, options.width // 64),
        num_key_value_heads=max(1, options.width // 192),
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def models(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Policy, reference, critic and reward model of an arm."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2ForCausalLM, Qwen2Model

    from align.models.critic import Critic
    from align.models.role_adapters import Adapter
    from align.models.roles import SharedBackbone
    from reward.model import RewardModel

    def lora() -> Any:
        return LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=list(TARGETS))

    config = shape(options)
    if arm == "roles":
        added = {"policy": Adapter(lora()), "reference": Adapter(lora())}
        added |= {name: Adapter(lora(), of_body=True) for name in ("reward", "critic")}
        backbone = SharedBackbone(Qwen2ForCausalLM(config), added)
        made = {name: backbone.causal(name) for name in ("policy", "reference")}
        bodies = {name: backbone.headless(name) for name in ("critic", "reward")}
    else:
        made = {name: Qwen2ForCausalLM(config) for name in ("policy", "reference")}
        bodies = {name: Qwen2Model(config) for name in ("critic", "reward")}
        if arm == "lora":
            made = {name: get_peft_model(model, lora()) for name, model in made.items()}
            bodies = {name: get_peft_model(model, lora()) for name, model in bodies.items()}
    reward = RewardModel(bodies["reward"]).requires_grad_(False)
    return {**made, "critic": Critic(bodies["critic"]), "reward": reward}


def run_arm(arm: str, options: argparse.Namespace, folder: str) -> dict[str, float]:
    """One PPO iteration of an arm, in this process: its figures."""
    import torch

    from align import PPOConfig, PPOTrainer
    from align.models import roles  # noqa: F401 (imported before memory is read)
    from align.models.tokenizer import train_tokenizer
    from data_formats.records import Message, Prompt
    from reward.sources import ModelReward

    torch.set_num_threads(1)
    torch.manual_seed(0)
    prompts = [Prompt((Message("user", f"Say something about the number {number}."),)) for number in range(8)]
    tokenizer = train_tokenizer([prompt.messages[0].content for prompt in prompts], vocab_size=300)
    began, before = time.perf_counter(), resident("VmRSS")
    made = models(arm, options)
    trainer = PPOTrainer(
        made["policy"],
        made["critic"],
        ModelReward(made["reward"].eval(), tokenizer, batch_size=8),
        tokenizer,
        PPOConfig(
            num_iterations=1,
            rollout_batch_size=8,
            num_mini_batches=2,
            micro_batch_size=2,
            critic_warmup_steps=0,
            rollout={"num_generations": 1, "max_completion_length": options.reply, "batch_size": 8},
            policy={"learning_rate": 1e-5},
            critic={"learning_rate": 1e-5},
        ),
        prompts,
        output_dir=folder,
        reference=made["reference"],
    )
    trainer.train()
    peak, seconds = resident("VmHWM") - before, time.perf_counter() - began
    step = trainer.save_checkpoint()
    tensors = {p.data_ptr(): p for model in made.values() for p in everything(model)}
    trained = [p for name in ("policy", "critic") for p in made[name].parameters() if p.requires_grad]
    return {
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "trained": sum(parameter.numel() for parameter in trained),
        "peak": peak,
        "checkpoint": sum(file.stat().st_size for file in step.rglob("*") if file.is_file()),
        "seconds": seconds,
    }


def everything(model: Any) -> Any:
    """The parameters that a model computes with; a role's view does not hold the base's."""
    for part in model.modules():
        whole = base_of(part)
        yield from whole.parameters()


def measure(arm: str, argv: list[str]) -> dict[str, float]:
    """`run` in a process of its own."""
    command = [sys.executable, __file__, *argv, "--arm", arm]
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        raise RuntimeError(f"the arm {arm} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Print the table, and return the figures by arm."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--reply", type=int, default=64, help="tokens of a reply")
    parser.add_argument("--arm", choices=ARMS, help="run this one here and print its figures as JSON")
    options = parser.parse_args(argv)
    if options.arm:
        with tempfile.TemporaryDirectory() as folder:
            found = run_arm(options.arm, options, folder)
        print(json.dumps(found))
        return {options.arm: found}
    table = {arm: measure(arm, argv) for arm in ARMS}
    full = table["full"]
    print("| | parameters | trained | peak MiB | of the full four | checkpoint MiB | s |", "|---" * 7 + "|", sep="\n")
    for arm, words in ARMS.items():
        found = table[arm]
        found["ratio"] = found["peak"] / full["peak"]
        print(
            f"| {words} | {found['parameters'] / 1e6:.1f} M | {found['trained'] / 1e6:.2f} M "
            f"| {found['peak'] / MIB:.0f} | {found['ratio']:.1%} | {found['checkpoint'] / MIB:.0f} "
            f"| {found['seconds']:.0f} |"
        )
    return table


if __name__ == "__main__":
    main()
