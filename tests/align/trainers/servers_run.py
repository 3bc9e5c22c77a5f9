"""What test_ppo_servers.py runs on one rank or two: PPO that samples from servers given by address, undisturbed or with
one that is killed in the middle of an iteration, one that joins in it, and the killed one taken off the list in the
next."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from align.trainers.ppo import PPOTrainer
from rollouts.vllm.client import Client, ServerGone
from rollouts.vllm.servers import GENERATE
from tests.align.trainers import ppo_case, ppo_ranks
from tests.rollouts.vllm.models import build

ITERATIONS = 4


@dataclass
class Disturbance:
    """Attributes:
    dies: address of the server that is killed when the first rank has asked it twice in the second iteration.
    pid: of its process group; None for one that is told to die.
    joins: address of the one that joins then.
    """

    dies: str
    joins: str
    pid: int | None = None


class Disturbed(PPOTrainer):
    disturbance: Disturbance | None = None
    iteration = 0

    def collect(self, prompts, params=None):
        self.iteration += 1
        disturbance = self.disturbance
        if disturbance is None or self.iteration not in (2, 3):
            return super().collect(prompts, params)
        if self.rank > 0:
            if self.iteration == 2:
                wait_until_gone(disturbance.dies)  # so that this rank asks a dead one
            return super().collect(prompts, params)
        if self.iteration == 3:
            align_engine("remove", disturbance.dies, self.output_dir)
            return super().collect(prompts, params)
        align_engine("add", disturbance.joins, self.output_dir)
        asked, ask = [], Client.ask

        def deadly(client, path, *args, **kwargs):
            if path == GENERATE and client.url == disturbance.dies:
                asked.append(path)
                if len(asked) == 2 and disturbance.pid is not None:
                    os.killpg(disturbance.pid, signal.SIGKILL)
                elif len(asked) == 2:
                    ask(client, "/die?in=0", timeout=5)
            return ask(client, path, *args, **kwargs)

        Client.ask = deadly
        try:
            return super().collect(prompts, params)
        finally:
            Client.ask = ask
            assert len(asked) >= 2


def wait_until_gone(url: str) -> None:
    client, deadline = Client(url, os.environ["ALIGN_VLLM_API_KEY"]), time.monotonic() + 300
    with suppress(ServerGone):
        while time.monotonic() < deadline:
            client.ask("/weight_info", timeout=60)
            time.sleep(0.05)
        raise TimeoutError(f"{url} does not die")


def align_engine(what: str, url: str, run: Path) -> None:
    place = {name: value for name, value in os.environ.items() if not name.endswith(("RANK", "WORLD_SIZE"))}
    subprocess.run([sys.executable, "-m", "align.cli", "engine", what, url, str(run)], env=place, check=True)


def policy(kind: str = "full") -> torch.nn.Module:
    model = build("qwen2-tied", vocab_size=259, initializer_range=0.1)
    if kind == "full":
        return model
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules="all-linear"))


def train(folder: Path, urls: tuple[str, ...], disturbance: Disturbance | None, kind: str = "full") -> PPOTrainer:
    """A whole run; the first rank writes what it learnt to `learnt.pt`."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(json.dumps({"ppo": {"rollout": {"vllm": {"urls": urls}}}}))
    rollout = {"engine": "vllm_server", "max_prompt_length": 40, "max_completion_length": 12, "num_generations": 4}
    trainer = ppo_case.trainer(
        folder,
        kind=Disturbed,
        policy_model=policy(kind),
        critic_model=ppo_case.critic(1),
        rollout=rollout | {"vllm": {"urls": urls}},
        num_iterations=ITERATIONS,
    )
    trainer.disturbance = disturbance
    try:
        trainer.train()
        ppo_ranks.write(trainer, folder / "learnt.pt")
    finally:
        trainer.engine.close()
    return trainer


def main(folder: Path, urls: tuple[str, ...], disturbance: Disturbance | None) -> None:
    """On a rank; its log goes to a file."""
    faulthandler.dump_traceback_later(1500, exit=True)
    rank = os.environ.get("RANK", "0")
    logging.basicConfig(level=logging.INFO, format="%(message)s", filename=folder.with_suffix(f".rank{rank}.log"))
    train(folder, urls, disturbance)
