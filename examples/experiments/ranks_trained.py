"""What `ranks.py` has its ranks do: a few steps of a stage, from where it stands, on tiny models of random weights.

    python examples/experiments/ranks_trained.py OUT sft
    align launch --config_file ddp --num_processes 2 examples/experiments/ranks_trained.py OUT ppo --kill

Writes `weights.pt`, whole; with `--kill` the last rank kills itself instead, after two steps (of rejection: when it
samples for the second time), and writes when, in `killed`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import DPOConfig

from align.models.critic import Critic
from align.models.tokenizer import train_tokenizer
from align.recipe import load_recipe
from align.recipe.batch import BatchPlan, launched_world_size
from align.recipe.fields import Source
from align.recipe.model_section import ModelSection
from align.recipe.ppo_section import PPOConfig
from align.recipe.supervised_sections import SupervisedSection
from align.runs import checkpoint
from align.runs.launch import guarded, prepare
from align.runtime.ranks import barrier, is_main
from align.stages import candidates, common, run_rejection
from align.trainers import sharding
from align.trainers.arguments import training_arguments
from align.trainers.dpo import DPOTrainer, dpo_options
from align.trainers.ppo import PPOTrainer
from align.trainers.reward import RewardTrainer
from align.trainers.sft import SFTTrainer
from reward.model import RewardModel

STEPS, BATCH, KILL_AFTER, SEED = 4, 8, 2, 3
RECIPE = """name: ranks
output_dir: {out}
seed: 3
model: {{path: {out}/given/model}}
rejection: {{data: [{out}/given/prompts.jsonl], max_length: 300, batch_size: 4, micro_batch_size: 2, max_steps: 3, \
learning_rate: 0.01, save_steps: 1, num_rounds: 1, \
reward: {{kind: function, function: "{out}/given/reward.py:letters"}}, \
rollout: {{num_generations: 4, max_prompt_length: 60, max_completion_length: 20, batch_size: 8}}}}
"""
WORDS = [first + second for first in "abcdefgh" for second in "ijklmnop"]
REWARD = "def letters(prompts, completions):\n    return [float(len(set(text))) for text in completions]\n"


def exact(model: Any) -> Any:
    """In float64 throughout."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "Qwen2RMSNorm":
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon)
                norm.weight = nn.Parameter(child.weight.detach().clone())
                setattr(parent, name, norm)
    return model.double()


def model(seed: int = 0) -> Any:
    """A Qwen2 of width 16."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.05}
    return Qwen2ForCausalLM(Qwen2Config(**shape, bos_token_id=None, eos_token_id=258, max_position_embeddings=512))


def letters(prompts: list[str], completions: list[str]) -> list[float]:
    """The reward: how many different characters a reply has."""
    return [float(len(set(text))) + 0.1 * len(text) for text in completions]


def trainer_of(stage: str, out: Path, callbacks: list[Any]) -> Any:
    """The trainer of a stage, with its rows."""
    ranks, draw, tokenizer = launched_world_size(), random.Random(SEED), train_tokenizer([], 259)

    def ids(most: int) -> list[int]:
        return [draw.randrange(256) for _ in range(draw.randint(2, most))]

    if stage == "ppo":
        rollout = {"engine": "hf", "num_generations": 2, "max_completion_length": 8, "top_k": 1, "top_p": 1.0}
        sizes = {"num_iterations": STEPS, "rollout_batch_size": BATCH, "num_mini_batches": 2, "micro_batch_size": 2}
        rates = {"policy": {"learning_rate": 1e-3}, "critic": {"learning_rate": 1e-3}, "ema_decay": 0.9}
        config = PPOConfig(**sizes, **rates, rollout=rollout, critic_warmup_steps=1, save_steps=1, log_samples=0)
        policy, critic = exact(model()), Critic.from_causal_lm(exact(model(1)))
        critic.head.weight = torch.nn.Parameter(critic.head.weight.detach().double())
        prompts = [f"say {'abc'[at % 3] * (1 + at)}" for at in range(12)]
        return PPOTrainer(
            policy, critic, letters, tokenizer, config, prompts, output_dir=out, callbacks=callbacks, seed=SEED
        )
    section = SupervisedSection(
        data=(Source(path="unused"),),
        learning_rate=1e-3,
        max_length=64,
        batch_size=BATCH,
        micro_batch_size=1,
        max_steps=STEPS,
        save_steps=1,
        logging_steps=1,
    )
    plan = BatchPlan(stage, ranks, BATCH, BATCH // ranks, 1, BATCH // ranks)
    given: dict[str, Any] = {"processing_class": tokenizer, "callbacks": callbacks}
    if stage == "dpo":
        rows = [{"prompt_ids": ids(8), "chosen_ids": ids(9), "rejected_ids": ids(9)} for _ in range(STEPS * BATCH)]
        rows = [row | {name.replace("ids", "mask"): [1] * len(row[name]) for name in (*row,)[1:]} for row in rows]
        own = dpo_options(beta=0.1, nll_coef=0.2, batch_size=2)
        args = training_arguments(section, plan, ModelSection(path="x"), out, seed=SEED, made=DPOConfig, **own)
        return DPOTrainer(exact(model()), args, train_dataset=rows, **given)
    args = training_arguments(section, plan, ModelSection(path="x"), out, seed=SEED)
    if stage == "sft":
        texts = [ids(20) for _ in range(STEPS * BATCH)]
        rows = [{"input_ids": text, "labels": [-100, *text[1:]]} for text in texts]
        return SFTTrainer(exact(model()), args, train_dataset=rows, **given)
    rows = [{"chosen_ids": [*ids(9), 258], "rejected_ids": [*ids(9), 258]} for _ in range(STEPS * BATCH)]
    return RewardTrainer(RewardModel(model().model), args, train_dataset=rows, **given)


def train(stage: str, out: Path, kill: bool) -> None:
    """A rank of a launch: the stage from where it stands."""
    last = kill and int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1

    def die() -> None:
        (out / "killed").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

    class Killed(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if last and state.global_step == KILL_AFTER:
                die()

    prepare()
    with guarded(proceed="the same command") as ending:
        if stage == "rejection":
            weights = _rejection(out, die if last else None)
        else:
            trainer = trainer_of(stage, out, [Killed()])
            start = checkpoint.latest(out / "checkpoints")
            trainer.train(resume_from_checkpoint=str(start) if start else None)
            module = trainer.policy.raw if stage == "ppo" else trainer.accelerator.unwrap_model(trainer.model)
            sharding.reshard(module)
            weights = {name: sharding.full(part.detach()).clone() for name, part in module.named_parameters()}
        if is_main():
            torch.save(weights, out / "weights.pt")
    sys.exit(ending.code)


def _rejection(out: Path, die: Callable[[], None] | None) -> dict[str, Any]:
    common.place()  # where ranks meet
    if is_main():
        _write_files(out)
    barrier()
    candidates.BATCHES_A_PIECE, judged = 1, candidates.Sampler.judged
    calls = iter(range(1000))
    if die is not None:
        candidates.Sampler.judged = lambda *args, **named: die() if next(calls) else judged(*args, **named)
    run_rejection.run_rejection(load_recipe(out / "recipe.yaml"))
    return load_file(out / "rejection" / "model" / "model.safetensors")


def _write_files(out: Path) -> None:
    files = out / "given"
    model().save_pretrained(files / "model")
    train_tokenizer([], 259).save_pretrained(files / "model")
    (files / "reward.py").write_text(REWARD)
    (files / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say {word}"}) + "\n" for word in WORDS))
    (out / "recipe.yaml").write_text(RECIPE.format(out=out))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("stage", choices=("sft", "rm", "dpo", "ppo", "rejection"))
    parser.add_argument("--kill", action="store_true", help="the last rank does not live")
    args = parser.parse_args()
    train(args.stage, args.out, args.kill)
