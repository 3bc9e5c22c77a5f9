"""One PPO iteration beside TRL's, and beside the floor: bare passes with no trainer around them.

    python examples/benchmarks/ppo.py [--cases A B B4 C] [--sides align trl floor] [--rounds 5] [--out FOLDER]
    python examples/benchmarks/ppo.py --cases B --sides align floor --set micro_batch_size=32

All three sample replies of exactly `length` tokens (the end token is off), score them with a reward model, ask the
reference, and make one optimizer step of policy and critic over all replies: one epoch, one minibatch. Policy,
reference, critic and reward model have one shape, a Qwen2 of random weights in float32; prompts are the same ids in
every iteration. `trl` is TRL 1.12.0, the last release with PPO, in an environment that this script makes; its n replies
to a prompt are n rows, 16 rows to a micro-batch, where ours are as large as they are by default. `floor` (`bare.py`)
shares prompts, and makes all passes that the algorithm names; `lean` leaves out those for old log-probabilities and old
values, which a single optimizer step can do without.

Each project logs every iteration. What they compute beside is their own: align the exact KL of a few replies, TRL the
entropy of every reply token.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import measuring
import small_models
import trl_environment
from measuring import Case, Turns

SHAPE = {"vocab": 2048, "width": 256, "layers": 6, "times": 1, "length": 128, "micro": 16, "bf16": False, "set": []}
CASES = {
    "A": {"words": "64 prompts of 16–64 tokens", **SHAPE, "prompts": 64, "shortest": 16, "longest": 64},
    "B": {"words": "32 prompts of 512 tokens × 2 replies", **SHAPE, "prompts": 32, "shortest": 512, "longest": 512},
    "B4": {"words": "16 prompts of 512 tokens × 4 replies", **SHAPE, "prompts": 16, "shortest": 512, "longest": 512},
    "C": {"words": "vocabulary 151,936, 16 replies", **SHAPE, "prompts": 16, "shortest": 16, "longest": 64},
}
CASES["B"]["times"], CASES["B4"]["times"], CASES["C"]["vocab"] = 2, 4, 151_936
TINY = {"vocab": 64, "width": 32, "layers": 1, "prompts": 2, "shortest": 12, "longest": 12, "length": 4, "micro": 4}
FLOOR_MICRO = 4  # replies of a pass of the floor, at which it is fastest on CPUs, and small
MANY = 1_000_000  # iterations: the parent says when it has seen enough


def align(case: Case, turns: Turns) -> None:
    """`PPOTrainer` with its defaults, but for what the case says."""
    import yaml

    from align import PPOConfig, PPOTrainer
    from align.models.critic import Critic
    from align.trainers.sharding import make_accelerator
    from data_formats.records import Message, Prompt
    from reward.model import RewardModel
    from reward.sources import ModelReward

    names = small_models.tokenizer(case["vocab"])
    options: dict[str, Any] = {
        "num_iterations": MANY,
        "rollout_batch_size": case["prompts"],
        "num_ppo_epochs": 1,
        "num_mini_batches": 1,
        "critic_warmup_steps": 0,
        "log_samples": 0,
        "policy": {"learning_rate": 1e-6},
        "critic": {"learning_rate": 1e-6},
        "rollout": {
            "engine": "hf",
            "num_generations": case["times"],
            "top_p": 1.0,
            "max_prompt_length": case["longest"],
            "max_completion_length": case["length"],
            "min_completion_length": case["length"],
        },
    }
    for change in case["set"]:  # a.b=value
        key, _, value = change.partition("=")
        *sections, last = key.split(".")
        place = options
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = yaml.safe_load(value)
    policy = small_models.make("Qwen2ForCausalLM", case)
    reward = RewardModel(small_models.make("Qwen2Model", case, seed=1)).requires_grad_(False).eval()
    PPOTrainer(
        policy,
        Critic(small_models.make("Qwen2Model", case, seed=2)),
        ModelReward(reward, names),
        names,
        PPOConfig(**options),
        [Prompt((Message("user", question),)) for question in small_models.questions(case)],
        output_dir=tempfile.mkdtemp(),
        accelerator=make_accelerator("bf16" if case["bf16"] else "no"),
        callbacks=[turns.callback(ends="on_log")],
    ).train()


def trl(case: Case, turns: Turns) -> None:
    """TRL's PPOTrainer, `micro` rows to a micro-batch; runs in its own environment, without align."""
    import torch
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    replies = case["prompts"] * case["times"]
    micro = min(case["micro"], replies)
    rows = [{"input_ids": ids} for ids in small_models.prompt_ids(case) for _ in range(case["times"])]
    dataset = Dataset.from_list(rows)
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=replies // micro,
        num_mini_batches=1,
        num_ppo_epochs=1,
        total_episodes=replies * MANY,
        response_length=case["length"],
        temperature=1.0,
        local_rollout_forward_batch_size=min(64, replies),
        num_sample_generations=0,
        report_to="none",
        learning_rate=1e-6,
        kl_coef=0.04,
        use_cpu=not torch.cuda.is_available(),
        bf16=case["bf16"],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    policy, reference = (small_models.make("Qwen2ForCausalLM", case) for _ in range(2))
    reward, critic = (
        small_models.make("Qwen2ForSequenceClassification", case, seed=seed, num_labels=1) for seed in (1, 2)
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=small_models.tokenizer(case["vocab"]),
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=critic,
        train_dataset=dataset,
        eval_dataset=dataset,
        callbacks=[turns.callback()],
    )
    trainer.callback_handler.pop_callback(PrinterCallback)
    trainer.train()


def floor(case: Case, turns: Turns) -> None:
    """The bare passes, all of them; the phases' seconds beside."""
    _bare(case, turns, lean=False)


def lean(case: Case, turns: Turns) -> None:
    """The same without the passes for what is old."""
    _bare(case, turns, lean=True)


def _bare(case: Case, turns: Turns, lean: bool) -> None:
    import time

    import torch
    from bare import Iteration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    prompts = small_models.prompt_ids(case)
    policy = small_models.make("Qwen2ForCausalLM", case).to(device)
    body = small_models.make("Qwen2Model", case, seed=1).to(device)
    iteration = Iteration(policy, body, prompts, case["times"], case["length"], FLOOR_MICRO)
    while True:
        turns.begin()
        seconds, began = {}, time.perf_counter()

        def lap(name: str, seconds: dict = seconds) -> None:
            nonlocal began
            seconds[f"seconds/{name}"], began = time.perf_counter() - began, time.perf_counter()

        with torch.autocast(device, torch.bfloat16, enabled=case["bf16"]):
            replies_NR = iteration.decode()
            lap("rollout")
            iteration.score(replies_NR)
            lap("score")
            iteration.ask(iteration.reference, replies_NR)
            if not lean:
                iteration.ask(policy, replies_NR)
                iteration.values(replies_NR)
            lap("experience")
            iteration.update_critic(replies_NR)
            iteration.update_policy(replies_NR)
            lap("update")
        turns.end(**seconds)


SIDES = {"align": align, "trl": trl, "floor": floor, "lean": lean}


def options(parser: ArgumentParser) -> None:
    """Of this script."""
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16, on every side")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change keys of align's PPOConfig")
    parser.add_argument("--length", type=int, help="tokens of a reply (default 128)")
    parser.add_argument("--venv", type=Path, help=f"TRL's environment (default {trl_environment.default_folder()})")


def settle(asked: Namespace, case: Case) -> Case:
    """The case as the options want it."""
    return case | {"bf16": asked.bf16, "set": asked.set} | ({"length": asked.length} if asked.length else {})


def pythons(asked: Namespace) -> dict[str, str]:
    """TRL's own interpreter, where it takes part."""
    return {"trl": trl_environment.interpreter(asked.venv)} if "trl" in asked.sides else {}


def main(argv: list[str] | None = None) -> None:
    """As the options say."""
    measuring.program(
        __file__,
        __doc__,
        SIDES,
        CASES,
        unit="iteration",
        tiny=TINY,
        options=options,
        settle=settle,
        pythons=pythons,
        argv=argv,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
