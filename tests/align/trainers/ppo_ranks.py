"""Started by test_ppo_ranks.py on one or two ranks: trains, and the first rank writes what it learnt.

`python ppo_ranks.py OUT MODE`, MODE `given` (the same samples for any number of ranks), `composed` (these, with a
reward of two parts and a running deviation), `resume`, or `fail` (the engine of the last rank gives up).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]
sys.path[0] = str(ROOT)

from align.runs.errors import TrainingError  # noqa: E402
from reward.combined import CombinedReward, Part  # noqa: E402
from reward.sources import FunctionReward  # noqa: E402
from rollouts.errors import RolloutError  # noqa: E402
from tests.align.trainers import ppo_case  # noqa: E402


def make(folder: Path, **options):
    return ppo_case.trainer(
        folder,
        kind=options.pop("kind", ppo_case.Recorder),
        policy_model=ppo_case.exact(ppo_case.policy(0)),
        reference=ppo_case.exact(ppo_case.policy(5)),
        critic_model=ppo_case.ExactCritic(1),
        reward=options.pop("reward", ppo_case.length_score),
        num_iterations=3,
        micro_batch_size=2,
        num_ppo_epochs=2,
        critic_warmup_steps=1,
        ptx_coef=0.3,
        ptx_ratio=1,
        ptx_blocks=[[3, 8, 200, 17, 4], [9, 256, 11], [40, 41, 42, 43, 44, 45, 46], [5, 6]],
        log_samples=2,
        **options,
    )


def write(trainer, out: Path) -> None:
    if trainer.accelerator.is_main_process:
        weights = [p.detach() for model in (trainer.policy, trainer.critic) for p in model.raw.parameters()]
        history = [
            {k: v for k, v in line.items() if not k.startswith(("seconds", "tokens_per", "memory"))}
            for line in trainer.state.log_history
        ]
        torch.save({"weights": weights, "history": history}, out)


class Broken(ppo_case.PPOTrainer):
    def collect(self, prompts, params=None):
        if self.rank == self.world_size - 1:
            raise RolloutError("no answer")
        return super().collect(prompts, params)


def fail(folder: Path) -> None:
    trainer = make(folder, kind=Broken, reward=ppo_case.vowels)
    try:
        trainer.train()
    except TrainingError as error:
        (folder / f"rank{trainer.rank}.txt").write_text(str(error))


def composed() -> CombinedReward:
    parts = (FunctionReward(ppo_case.length_score), FunctionReward(ppo_case.vowels))
    return CombinedReward([Part(reward, weight) for reward, weight in zip(parts, (1.0, 2.5), strict=True)])


def main(out: str, mode: str) -> None:
    folder = Path(out)
    if mode in ("given", "composed"):
        trainer = make(
            folder, **({"reward": composed(), "normalize_reward": "running_mean_std"} if mode != "given" else {})
        )
        lengths, finished = (5, 1, 7, 3, 2, 6, 4, 7), (True, True, False, True, True, True, False, True)
        trainer.given = [ppo_case.samples(lengths, finished=finished, seed=seed) for seed in range(3)]
        trainer.train()
        write(trainer, folder / "learnt.pt")
        return
    if mode == "fail":
        fail(folder)
        return
    options = {"kind": ppo_case.PPOTrainer, "reward": ppo_case.vowels, "save_steps": 1, "save_total_limit": 5}
    trainer = make(folder / "whole", **options)
    trainer.train()
    write(trainer, folder / "whole.pt")
    again = make(folder / "whole", **options)
    again.train(resume_from_checkpoint=folder / "whole" / "checkpoints" / "step-1")
    write(again, folder / "again.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
