"""A PPO run that ends itself with SIGKILL at a named place; test_ppo_kills.py calls `run` in a process of its own.

It trains in a folder as the ppo stage does, from the newest checkpoint there on, and dies by the order
PLACE:COUNT[@RANK] the COUNT-th time it comes through PLACE. Before it dies it appends a line to `FOLDER/kills.jsonl`
that says where it stood.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

from align.runs import checkpoint, metrics
from align.runs.callbacks import stage_callbacks
from align.runs.interrupt import StopFlag
from align.runs.seeding import seed_everything
from align.stages import run_ppo
from align.trainers.ppo import PPOTrainer
from rollouts.hf import HFEngine
from tests.align.trainers import ppo_case

ITERATIONS, FEW = 8, 5  # a whole run, and one with `--few`
WARM_UP = 6  # optimizer steps: all four of the first iteration and half of the second
BLOCKS = [[1, 2, 3, 4, 5], [7, 8, 9], [10, 11, 12, 13], [14, 15], [200, 3, 77]]


class Kill:
    """Ends the process when it comes through `place` for the `count`-th time on `rank`."""

    def __init__(self, folder: Path, order: str, rank: int):
        self.folder, (self.place, _, count) = folder, order.partition(":")
        count, _, wanted = count.partition("@")
        self.left = int(count or 0) if int(wanted or 0) == rank else 0

    def __call__(self, place: str, **facts: Any) -> None:
        if place == self.place and self.left:
            self.left -= 1
            if not self.left:
                with open(self.folder / "kills.jsonl", "a") as file:
                    file.write(json.dumps({"place": place, **facts}) + "\n")
                os.kill(os.getpid(), signal.SIGKILL)


class Mortal(PPOTrainer):
    """Says where it is; the places that are no seam of the trainer are in `lay_mines`."""

    kill: Kill

    def where(self) -> dict[str, Any]:
        return {"step": self.state.global_step, "optimizer_steps": self.optimizer_steps}

    def collect(self, prompts, params=None):
        def on_forward(*_: Any) -> None:
            self.kill("collection" if params is None else "evaluation", **self.where())

        handle = self.policy.raw.get_input_embeddings().register_forward_hook(on_forward)
        try:
            return super().collect(prompts, params)
        finally:
            handle.remove()

    def value_loss(self, values_BS, batch):
        if self.warming_up:
            self.kill("warm_up", **self.where())
        return super().value_loss(values_BS, batch)

    def policy_loss(self, logps_BS, batch):
        self.ptx_micros = 0
        return super().policy_loss(logps_BS, batch)

    def ptx_loss(self, input_ids_BT, mask_BT):
        if self.ptx_micros:
            self.kill("ptx", micro=self.ptx_micros, **self.where())
        self.ptx_micros += 1
        return super().ptx_loss(input_ids_BT, mask_BT)

    def save_model(self, folder):
        super().save_model(folder)
        self.kill("after_model", name=Path(folder).parent.name, **self.where())

    def save_checkpoint(self):
        self.kill("before_saving", **self.where())
        return super().save_checkpoint()


def lay_mines(trainer: Mortal) -> None:
    """Kill points inside the optimizer steps and inside the writing of files."""
    kill, policy = trainer.kill, trainer.policy
    old: list[torch.Tensor] = []

    def on_critic_stepped(*_: Any) -> None:
        if not trainer.warming_up:
            kill("between_optimizers", **trainer.where())

    def on_policy_steps(*_: Any) -> None:
        old[:] = [p.detach().clone() for p in policy.parameters]

    def on_group(*_: Any, **__: Any) -> None:
        if old:
            changed = sum(not torch.equal(a, b) for a, b in zip(old, policy.parameters, strict=True))
            if 0 < changed < len(old):
                kill("between_groups", changed=changed, of=len(old), **trainer.where())

    if not trainer.engine.shares_module:
        embeddings = trainer.engine.model.get_input_embeddings()
        embeddings.register_forward_hook(lambda *_: kill("ahead", **trainer.where()) if beside_main() else None)
    trainer.critic.optimizer.optimizer.register_step_post_hook(on_critic_stepped)
    policy.optimizer.optimizer.register_step_pre_hook(on_policy_steps)
    policy.optimizer.optimizer.register_step_post_hook(lambda *_: old.clear())
    after(importlib.import_module("torch.optim.adam"), "adam", on_group)

    def half_a_state(value: Any, file: Any, **_: Any) -> None:
        if kill.place == "in_state_file" and isinstance(file, Path):
            written = Path(file).read_bytes()
            Path(file).write_bytes(written[: len(written) // 2])
            kill("in_state_file", bytes=len(written) // 2, **trainer.where())
            Path(file).write_bytes(written)

    def half_a_line(descriptor: int, data: bytes) -> None:
        if kill.place == "in_line" and kill.left == 1:
            os.write(descriptor, data[: len(data) // 2])
        kill("in_line", **trainer.where())

    after(torch, "save", half_a_state)
    before(metrics, "_append_whole", half_a_line)
    before(checkpoint, "put_dir", lambda *_: kill("before_rename", **trainer.where()))
    before(checkpoint, "_remove_others", lambda *_: kill("before_pruning", **trainer.where()))


def beside_main() -> bool:
    return threading.current_thread() is not threading.main_thread()


def before(module: Any, name: str, act: Callable[..., None]) -> None:
    original = getattr(module, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        act(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(module, name, wrapper)


def after(module: Any, name: str, act: Callable[..., None]) -> None:
    original = getattr(module, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        act(*args, **kwargs)
        return result

    setattr(module, name, wrapper)


def noisy(prompts, completions):
    """A reward that draws from the global generators of torch, numpy and Python."""
    scores = ppo_case.vowels(prompts, completions)
    noise = [float(torch.rand(())) + numpy.random.rand() + random.random() for _ in scores]
    return [score + value for score, value in zip(scores, noise, strict=True)]


def lora_policy():
    from peft import LoraConfig, get_peft_model

    base = ppo_case.policy()
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]))


def roles() -> dict[str, Any]:
    from tests.align.models import roles_case

    parts = roles_case.shared(roles_case.separate())
    return {"policy_model": parts["policy"], "critic_model": parts["critic"], "reference": parts["reference"]}


def make(folder: Path, flags: tuple[str, ...]) -> Mortal:
    """Everything that has a state is switched on; with `--overlap` the next batch is sampled meanwhile by a copy."""
    models = {"policy_model": lora_policy()} if "--lora" in flags else roles() if "--roles" in flags else {}
    overlap = "--overlap" in flags
    torch.manual_seed(11)
    rollout, more = {"batch_size": 3}, {}
    if overlap:
        rollout |= {"engine": "vllm_server", "overlap": True}
        more = {"engine": HFEngine(ppo_case.policy(), 0, 3, shares_module=False)}
        more["importance_sampling_correction"] = "token"
    return ppo_case.trainer(
        folder,
        kind=Mortal,
        **models,
        reward=noisy,
        num_prompts=7,
        num_iterations=FEW if "--few" in flags else ITERATIONS,
        num_ppo_epochs=2,
        critic_warmup_steps=WARM_UP,
        save_steps=1,
        save_total_limit=3,
        ptx_coef="auto",
        ptx_ratio=1,
        ptx_micro_batch_size=1,
        ptx_blocks=BLOCKS,
        normalize_reward="running_mean_std",
        kl_target=0.5,
        kl_horizon=100,
        ema_decay=0.9,
        eval_data=({"path": "unused"},),
        evaluation={"every_steps": 3, "save_best": True},
        eval_prompts=ppo_case.prompts(2),
        rollout=rollout,
        policy={"lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.1},
        critic={"lr_scheduler_type": "cosine"},
        **more,
    )


def run(path: Path, order: str = "", *flags: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    trainer = make(path, flags)
    trainer.kill = Kill(path, order, trainer.rank)
    lay_mines(trainer)
    newest = checkpoint.latest(trainer.checkpoint_dir)
    if trainer.rank == 0:
        with open(path / "starts.jsonl", "a") as file:
            file.write(json.dumps(checkpoint.step_of(newest) if newest else None) + "\n")
    seed_everything(3 if newest is None else 999)  # a resumed process starts with other generators
    start = checkpoint.step_of(newest) if newest else 0
    with StopFlag() as flag:  # as the stage does
        for callback in stage_callbacks("ppo", path, flag, start, metrics=False, figures=run_ppo.BAR):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=newest)
    trainer.kill("after_training", **trainer.where())
    trainer.save_model(path / "model")
    trainer.save_critic(path / "critic")
    trainer.save_ema(path / "ema")
