"""Advantages without a critic, through the whole trainer: beside the independent PPO, and what is not there."""

import ast
import json
from pathlib import Path

import pytest
import torch

from align.runs.errors import CheckpointError, TrainingError
from tests.align.trainers import estimator_reference as reference
from tests.align.trainers import ppo_case, ppo_comparison

WITHOUT = ("rloo", "grpo", "dr_grpo", "reinforce_pp")
OPTIONS = {
    "as it is": {},
    "groups of four, kl in the loss": {
        "rollout": {"num_generations": 4},
        "rollout_batch_size": 2,
        "kl_in": "loss",
        "loss_aggregation": "sequence",
        "num_mini_batches": 1,
        "num_ppo_epochs": 2,
    },
    "masked ends, the other whitening": {
        "rollout": {"num_generations": 4},
        "rollout_batch_size": 2,
        "mask_truncated_completions": True,
        "normalize_reward": "running_mean_std",
        "micro_batch_size": 3,
        "kl_coef": 0.5,
        "ptx_coef": 0.3,
        "ema_decay": 0.8,
    },
    "a group with one reply left": {"mask_truncated_completions": True, "kl_estimator": "k3"},
}


def test_the_reference_imports_nothing_of_ours():
    tree = ast.parse(Path(reference.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= {"__future__", "dataclasses", "math", "torch", "tests.align.trainers"}


def test_the_reference_by_hand():
    assert reference.returns_of([1.0, 2.0, 4.0], 0.5) == [3.0, 4.0, 4.0]
    assert [reference.compared(5.0, [1.0, 2.0], kind) for kind in ("rloo", "dr_grpo")] == [3.5, 5 - 8 / 3]
    assert reference.compared(5.0, [1.0], "grpo") == pytest.approx(2 / (8**0.5 + 1e-4), rel=1e-15)
    assert reference.compared(5.0, [], "grpo") == 0.0


QUICK = ("as it is", "a group with one reply left")
EACH = [(name, options) for name in WITHOUT for options in OPTIONS]


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(*one, marks=[pytest.mark.slow] * (one[0] != "grpo" and one[1] not in QUICK)) for one in EACH],
)
def test_every_optimizer_step_is_that_of_the_independent_ppo(name, options, tmp_path):
    changes = dict(OPTIONS[options])
    if options == "masked ends, the other whitening":
        changes |= {"whiten_advantages": name != "reinforce_pp"} | ({"gamma": 0.9} if name == "reinforce_pp" else {})
    trainer = ppo_comparison.trainer(tmp_path, advantage=name, num_iterations=2, **changes)
    trainer.train()
    found = ppo_comparison.Comparison(trainer)
    assert not found.wrong, found.wrong
    assert {"advantages", "rewards", "policy gradient", "advantages/std"} <= set(found.errors)
    assert "value gradient" not in found.errors and found.optimizer_steps >= 4
    counted = trainer.iterations[0].experience.advantages_NS[trainer.iterations[0].experience.mask_NS]
    assert counted.abs().max() > 0.1


@pytest.mark.parametrize("name", WITHOUT)
def test_garbage_where_no_token_counts_changes_nothing(name, tmp_path):
    """At the padding, and in the replies that are masked."""
    trainer = ppo_case.trainer(tmp_path, advantage=name, rollout={"num_generations": 4}, rollout_batch_size=2)
    generator = torch.Generator().manual_seed(0)
    rewards_NS = torch.randn(8, 5, generator=generator)
    mask_NS = torch.rand(8, 5, generator=generator) < 0.6
    mask_NS[2] = False
    dirty_NS = torch.where(mask_NS, rewards_NS, torch.tensor([float("nan"), float("inf"), -1e30, 7.0, float("-inf")]))
    clean_NS, targets_NS, deviation = trainer.compute_advantages(rewards_NS * mask_NS, None, mask_NS)
    found_NS, _, other = trainer.compute_advantages(dirty_NS, None, mask_NS)
    assert torch.equal(found_NS, clean_NS) and deviation == other and targets_NS is None
    assert clean_NS[~mask_NS].eq(0).all() and clean_NS.isfinite().all() and clean_NS.any()


@pytest.mark.parametrize("name", WITHOUT)
def test_there_is_no_critic_anywhere(name, tmp_path):
    trainer = ppo_case.trainer(tmp_path / "run", advantage=name, save_steps=1)
    assert trainer.critic is None and not trainer.warming_up
    trainer.train()
    step = tmp_path / "run" / "checkpoints" / "step-2"
    assert not (step / "critic").exists() and (step / "policy").is_dir()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {key for line in lines for key in line}
    assert not any("critic" in key or key.startswith("value") for key in logged)
    assert {"policy/loss", "lr/policy", "advantages/std"} <= logged
    with pytest.raises(TrainingError, match=f"there is no critic to save: advantage={name} learns without one"):
        trainer.save_critic(tmp_path / "critic")
    assert not (tmp_path / "critic").exists()


def test_a_critic_is_given_where_it_is_needed_and_only_there(tmp_path):
    def given(critic, **changes):
        config = ppo_case.section(**changes)
        parts = (ppo_case.policy(), critic, ppo_case.vowels, ppo_case.TOKENIZER, config, ppo_case.prompts(4))
        return ppo_case.PPOTrainer(*parts, output_dir=tmp_path)

    with pytest.raises(TypeError, match=r"^critic: must be None, since advantage=rloo learns without one"):
        given(ppo_case.critic(), advantage="rloo")
    with pytest.raises(TypeError, match=r"^critic: must be a torch module, not None; load or make it: "):
        given(None)
    whole = ppo_case.trainer(tmp_path / "gae", num_iterations=1)
    folder = whole.save_checkpoint()
    words = "was written by a run that trains policy and critic, and this one trains policy"
    with pytest.raises(CheckpointError, match=words):
        ppo_case.trainer(tmp_path / "rloo", num_iterations=1, advantage="rloo").load_checkpoint(folder)


def test_a_critic_without_targets_is_told_of(tmp_path):
    class Forgetful(ppo_case.PPOTrainer):
        def compute_advantages(self, rewards_NS, values_NS, mask_NS):
            return super().compute_advantages(rewards_NS, values_NS, mask_NS)[0], None, 1.0

    with pytest.raises(TypeError, match="advantage=gae has a critic, but compute_advantages gave it no targets: give "):
        ppo_case.trainer(tmp_path, kind=Forgetful, num_iterations=1).train()


def test_a_resumed_run_is_one_that_was_never_stopped(tmp_path):
    options = {"advantage": "rloo", "num_iterations": 3, "save_steps": 1}
    whole = ppo_case.trainer(tmp_path / "whole", **options)
    whole.train()
    again = ppo_case.trainer(tmp_path / "again", **options)
    again.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoints" / "step-2")
    for one, other in zip(whole.policy.parameters, again.policy.parameters, strict=True):
        assert torch.equal(one, other)


def test_the_gradient_of_rloo_is_that_of_reinforce(tmp_path):
    """Of one update: the gradient of -sum_i advantage_i log p(reply_i) over the number of tokens, computed apart."""

    class Watch(ppo_case.PPOTrainer):
        def policy_loss(self, logps_BS, batch):
            self.seen = [*getattr(self, "seen", []), (logps_BS, batch)]
            return super().policy_loss(logps_BS, batch)

    plain = {"advantage": "rloo", "normalize_reward": "none", "kl_coef": 0.5, "reward_clip_range": None}
    trainer = ppo_case.trainer(tmp_path, kind=Watch, num_mini_batches=1, micro_batch_size=8, **plain)
    with torch.no_grad():  # away from the reference, so that the KL in the reward is not 0
        for parameter in trainer.policy.parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    samples = trainer.collect(trainer.prompts[:4])
    scores_N = trainer.score(samples).total_N
    experience, _ = trainer.make_experience(samples, scores_N)
    trainer.update(experience)
    ((logps_BS, batch),) = trainer.seen
    logps_BS = logps_BS.detach().requires_grad_()
    (found_BS,) = torch.autograd.grad(trainer.policy_loss(logps_BS, batch)[0], logps_BS)
    kl_N = [
        float((old - ref)[mask].sum())
        for old, ref, mask in zip(experience.old_logps_NS, experience.ref_logps_NS, experience.mask_NS, strict=True)
    ]
    assert max(map(abs, kl_N)) > 0.01
    worth = [
        score - (0.0 if ended else 1.0) - 0.5 * kl
        for score, ended, kl in zip(scores_N.tolist(), samples.finished, kl_N, strict=True)
    ]
    advantages = [worth[row] - worth[row ^ 1] for row in range(8)]  # two replies to a prompt: the other one's reward
    order = {tuple(ids.tolist()): row for row, ids in enumerate(experience.tokens.input_ids_NT)}
    for ids, mask_S, gradient_S in zip(batch.tokens.input_ids_NT, batch.mask_NS, found_BS, strict=True):
        wanted_S = -advantages[order[tuple(ids.tolist())]] * mask_S
        assert gradient_S.tolist() == pytest.approx(wanted_S.tolist(), rel=1e-4, abs=1e-5)
