"""What test_ppo_ranks.py runs on one or two ranks, a mode after the other in the same processes: trains, and the first
rank writes what it learnt.

A mode is `given` (the same samples for any number of ranks), `composed` (these, the first of them read by a warm-up of
the critic, with a reward of two parts, which fails on one reply of the last rank, a running deviation and updates that
end early), `reference` (compared with the independent PPO), `estimators` (likewise, advantages without a critic),
`late` (without a pass of the policy before the update, and with one), `exact` (the trainer draws, in bfloat16),
`resume`, `overlap` (the same, the next batch sampled meanwhile; and an engine that gives up while it samples), `fail`
(the engine of the last rank gives up), `sharded` (under FSDP2: shares of unequal size are judged, models saved, and
bfloat16 computed in), `engine` (one with weights of its own on every rank, and full, LoRA and DoRA policies),
`push_fails` (the last rank's engine breaks off in the middle of a push), `moved` (goes on from a checkpoint, which
another number of ranks may have written), `roles` (roles of one backbone, its layers checkpointed, given samples), or
`refused` (these under FSDP2).
"""

from __future__ import annotations

import faulthandler
import json
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from align.runs.errors import LaunchError, TrainingError
from align.trainers import engines, sharding
from align.trainers.ppo import make_accelerator
from align.trainers.ppo.warmup import WarmupRollouts
from reward.combined import CombinedReward, Part
from reward.sources import FunctionReward
from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams
from tests.align.trainers import (
    overlap_case,
    own_engines,
    ppo_case,
    ppo_comparison,
    ppo_options,
    roles_run,
)


def make(folder: Path, **options):
    return ppo_case.trainer(
        folder,
        kind=options.pop("kind", ppo_case.Recorder),
        policy_model=options.pop("policy_model", None) or ppo_case.exact(ppo_case.policy(0)),
        reference=ppo_case.exact(ppo_case.policy(5)),
        critic_model=ppo_case.ExactCritic(1),
        reward=options.pop("reward", ppo_case.length_score),
        num_iterations=3,
        micro_batch_size=None,
        micro_batch_tokens=24,
        num_ppo_epochs=2,
        critic_warmup_steps=options.pop("critic_warmup_steps", 1),
        ema_decay=0.9,
        ptx_coef=0.3,
        ptx_ratio=1,
        ptx_blocks=[[3, 8, 200, 17, 4], [9, 256, 11], [40, 41, 42, 43, 44, 45, 46], [5, 6]],
        log_samples=2,
        **options,
    )


def full_parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All of them whole, on every rank."""
    sharding.reshard(module)
    return {name: sharding.full(parameter.detach()) for name, parameter in module.named_parameters()}


def write(trainer, out: Path) -> None:
    modules = [model.raw for model in trainer._trained.values()] + ([] if trainer.ema is None else [trainer.ema.module])
    weights = [parameter for module in modules for parameter in full_parameters(module).values()]
    if trainer.accelerator.is_main_process:
        history = [
            {k: v for k, v in line.items() if not k.startswith(("seconds", "tokens_per", "memory"))}
            for line in trainer.state.log_history
        ]
        torch.save({"weights": weights, "history": history}, out)


def late(folder: Path) -> None:
    options = {"advantage": "grpo", "kl_in": "loss", "num_mini_batches": 1, "num_iterations": 3, "log_samples": 8}
    for name, guards in (("late", {}), ("asks", {"max_kl": 1e9})):
        trainer = ppo_case.trainer(folder / name, guards=guards, **options)
        assert trainer._asks_policy_late == (name == "late")
        trainer.train()
        write(trainer, folder / f"{name}.pt")


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


class FailsMeanwhile(overlap_case.OwnWeights):
    def generate(self, prompts, params):
        if len(self.threads) == 2 and threading.current_thread() is not threading.main_thread():
            raise RolloutError("no answer")
        return super().generate(prompts, params)


def overlap(folder: Path) -> None:
    saving = {"num_iterations": 4, "eval_prompts": ppo_case.prompts(3)}
    for name, checkpoint in (("whole", None), ("again", folder / "whole" / "checkpoints" / "step-2")):
        trainer = overlap_case.make(folder / "whole", **saving)
        trainer.train(resume_from_checkpoint=checkpoint)
        write(trainer, folder / f"{name}.pt")
    own = {iteration: samples.reply_ids for iteration, samples in trainer.collected.items()}
    assert engines.of_the_first({"of rank": trainer.rank}) == {"of rank": 0}
    torch.save(own, folder / f"replies{trainer.rank}.pt")
    engine = (FailsMeanwhile if trainer.rank == trainer.world_size - 1 else overlap_case.OwnWeights)(ppo_case.policy())
    trainer = overlap_case.make(folder / "failed", made_engine=engine)
    try:
        trainer.train()
    except TrainingError as error:
        (folder / f"rank{trainer.rank}.txt").write_text(str(error))


def reference(folder: Path) -> None:
    """The largest errors of some combinations of options, by combination; under FSDP2, which is slow, of a third."""
    rows = [ppo_options.changes(row) for row in ppo_options.covering(ppo_options.FACTORS)]
    options = {name: ppo_options.everything(name) for name in ppo_options.RUNS}
    own = {str(at): row for at, row in enumerate(rows) if (at % 3 == 0) == ("ACCELERATE_USE_FSDP" in os.environ)}
    compare(folder, options | own)


def estimators(folder: Path) -> None:
    """The same of advantages without a critic, in groups that do not lie on one rank alone in any minibatch."""
    groups = {"rollout": {"num_generations": 4}, "rollout_batch_size": 2, "mask_truncated_completions": True}
    compare(folder, {name: groups | {"advantage": name} for name in ("rloo", "grpo", "dr_grpo", "reinforce_pp")})


def exact(folder: Path) -> None:
    trainer = ppo_case.trainer(
        folder,
        rollout={"exact": True, "max_completion_length": 12},
        micro_batch_size=1,
        eval_prompts=ppo_case.prompts(3),
        accelerator=make_accelerator("bf16"),
    )
    trainer.train()
    write(trainer, folder / "learnt.pt")


def compare(folder: Path, combinations: dict[str, ppo_options.Row]) -> None:
    found = {}
    for name, changes in combinations.items():
        trainer = ppo_comparison.trainer(folder / name, **({"num_iterations": 2} | changes))
        trainer.train()
        if trainer.accelerator.is_main_process:
            comparison = ppo_comparison.Comparison(trainer)
            found[name] = {"errors": comparison.errors, "wrong": comparison.wrong}
        trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        (folder / "found.json").write_text(json.dumps(found))


def composed() -> CombinedReward:
    def picky(prompts, completions):
        if "6" in completions:
            raise ValueError("no verdict on 6")
        return ppo_case.vowels(prompts, completions)

    parts = (FunctionReward(ppo_case.length_score), FunctionReward(picky))
    return CombinedReward([Part(reward, weight) for reward, weight in zip(parts, (1.0, 2.5), strict=True)])


class Counting(ppo_case.PPOTrainer):
    """Notes what a rank holds while it samples, and what an engine with weights of its own would be given."""

    def collect(self, prompts, params=None):
        self.held = sum(held(p) for p in self.policy.module.parameters())
        return super().collect(prompts, params)


def held(tensor: torch.Tensor) -> int:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel()


def sharded(folder: Path) -> None:
    for precision in ("no", "bf16"):
        trainer = ppo_case.trainer(
            folder / precision,
            kind=Counting,
            policy_model=ppo_case.policy(0, tie_word_embeddings=True),
            eval_prompts=ppo_case.prompts(3),
            num_iterations=1,
            ema_decay=0.5,
            accelerator=make_accelerator(precision),
        )
        looks = [trainer.evaluate(ppo_case.prompts(count)) for count in (3, 1)]  # one prompt: a rank has none
        trainer.train()
        modules = {"policy": trainer.policy.raw, "critic": trainer.critic.raw, "ema": trainer.ema.module}
        modules |= {"reference": trainer.reference}
        moments = [state["exp_avg"] for state in trainer.policy.optimizer.state.values()]
        facts = {
            "whole": {n: sum(p.numel() for p in full_parameters(m).values()) for n, m in modules.items()},
            "held": {n: sum(held(p) for p in m.parameters()) for n, m in modules.items()},
            "moments": sum(map(held, moments)),
            "sampling": trainer.held,
            "looks": looks,
            "dtypes": [str(p.dtype) for p in trainer.policy.module.parameters()],
            "history": trainer.state.log_history,
        }
        trainer.save_model(folder / precision / "model")
        trainer.save_critic(folder / precision / "critic")
        trainer.save_ema(folder / precision / "ema")
        facts["weights"] = {name: full_parameters(module) for name, module in modules.items()}
        torch.save(facts, folder / precision / f"rank{trainer.rank}.pt")


def own_engine(folder: Path) -> None:
    """What engine, policy and log hold after training, and what a rank held while it sampled and while it pushed."""
    for kind in ("full", "lora", "dora"):
        trainer = ppo_case.trainer(
            folder / kind,
            kind=Counting,
            policy_model=own_engines.policy_of(kind, tie_word_embeddings=True),
            engine=own_engines.Own(ppo_case.policy(99, tie_word_embeddings=True)),
            eval_prompts=ppo_case.prompts(3),
            num_iterations=2,
        )
        looks = [trainer.evaluate(ppo_case.prompts(count)) for count in (3, 1)]
        trainer.train()
        prompt = [5, 9, 100, 7, 30]
        reply = trainer.engine.generate([prompt], SamplingParams(temperature=0, max_new_tokens=12))[0]
        whole = full_parameters(trainer.policy.raw)
        facts = {
            "weights": {name: tensor.detach().clone() for name, tensor in whole.items()},
            "engine": {name: tensor.detach() for name, tensor in trainer.engine.model.named_parameters()},
            "reply": reply.token_ids,
            "looks": looks,
            "whole": sum(tensor.numel() for tensor in whole.values()),
            "sampling": trainer.held,
            "history": trainer.state.log_history,
        }
        torch.save(facts, folder / f"{kind}-{trainer.rank}.pt")


def push_fails(folder: Path) -> None:
    last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    engine = own_engines.Failing() if last else own_engines.Own()
    trainer = ppo_case.trainer(folder, engine=engine)
    try:
        trainer.train()
    except TrainingError as error:
        (folder / f"rank{trainer.rank}.txt").write_text(str(error))


def roles(folder: Path) -> None:
    parts = roles_run.models(shared=True, dtype=torch.float64)
    for name in ("policy", "critic"):
        parts[name].gradient_checkpointing_enable()
    options = {"reward": ppo_case.length_score, "critic_warmup_steps": 1, "ema_decay": 0.9, "num_iterations": 3}
    trainer = roles_run.trainer(folder, parts, **options)
    trainer.train()
    gradients = [list(found.values()) for _, found in trainer.steps]
    if trainer.accelerator.is_main_process:
        torch.save({"gradients": gradients}, folder / "gradients.pt")
    write(trainer, folder / "learnt.pt")
    whole = torch.cat([p.detach().flatten().double() for p in parts["policy"].peft_model.parameters()])
    torch.save(whole, folder / f"rank{trainer.rank}.pt")


def refused(folder: Path) -> None:
    try:
        roles_run.trainer(folder, roles_run.models(shared=True))
    except LaunchError as error:
        (folder / f"rank{os.environ['RANK']}.txt").write_text(str(error))


def moved(folder: Path, start: Path | None) -> None:
    """Replies that no rank's seed changes, but for the first sampled ahead. Saves after every iteration."""
    options = {"reward": ppo_case.vowels, "judge": shorter, "eval_prompts": ppo_case.prompts(3), "kl_target": 0.01}
    options |= {"normalize_reward": "running_mean_std", "evaluation": {"every_steps": 1}, "save_steps": 1}
    policy = ppo_case.exact(ppo_case.policy(0))
    trainer = make(
        folder,
        kind=ppo_case.PPOTrainer,
        policy_model=policy,
        engine=overlap_case.OwnWeights(policy),
        rollout=overlap_case.ROLLOUT | {"temperature": 1.0, "top_k": 1},
        importance_sampling_correction="token",
        save_total_limit=5,
        **options,
    )
    trainer.train(resume_from_checkpoint=start)
    write(trainer, folder / "learnt.pt")


def shorter(prompts, first, second):
    return [len(two) - len(one) for one, two in zip(first, second, strict=True)]


def given(folder: Path, warmed: bool = False, **options) -> None:
    lengths, finished = (5, 1, 7, 3, 2, 6, 4, 7), (True, True, False, True, True, True, False, True)
    samples = [ppo_case.samples(lengths, finished=finished, seed=at, to_a_prompt=2) for at in range(3)]
    options |= {"warmup": WarmupRollouts(samples[0]), "critic_warmup_steps": 4} if warmed else {}
    trainer = make(folder, **options)
    trainer.given = samples
    trainer.train()
    write(trainer, folder / "learnt.pt")


def given_composed(folder: Path) -> None:
    options = {"reward": composed(), "normalize_reward": "running_mean_std", "target_kl": 0.05}
    given(folder, warmed=True, **options, on_reward_error="mask")


def resume(folder: Path) -> None:
    options = {"kind": ppo_case.PPOTrainer, "reward": ppo_case.vowels, "save_steps": 1, "save_total_limit": 5}
    options |= {"judge": shorter, "eval_prompts": ppo_case.prompts(3), "evaluation": {"every_steps": 1}}
    for name, checkpoint in (("whole", None), ("again", folder / "whole" / "checkpoints" / "step-1")):
        trainer = make(folder / "whole", **options)
        trainer.train(resume_from_checkpoint=checkpoint)
        write(trainer, folder / f"{name}.pt")


MODES = {"given": given, "composed": given_composed, "reference": reference, "estimators": estimators, "late": late}
MODES |= {"exact": exact, "resume": resume, "overlap": overlap, "fail": fail, "sharded": sharded, "engine": own_engine}
MODES |= {"push_fails": push_fails, "roles": roles, "refused": refused}


def main(folder: Path, modes: Sequence[str], start: Path | None = None) -> None:
    """Every mode in a folder of its own; `moved` goes on from `start`."""
    for mode in modes:
        faulthandler.dump_traceback_later(250, exit=True)
        own = folder / mode
        own.mkdir(parents=True, exist_ok=True)
        (MODES | {"moved": partial(moved, start=start)})[mode](own)
