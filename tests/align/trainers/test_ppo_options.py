"""What the recipe can ask of PPO beyond its defaults, through the trainer; the formulas are tested elsewhere."""

import json
import logging
import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.runs.errors import CheckpointError, TrainingError
from rollouts.errors import RolloutError
from tests.align.trainers import ppo_case

ONE_STEP = {"num_mini_batches": 1, "rollout_batch_size": 2}


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Apart(ppo_case.PPOTrainer):
    """Its engine computes every log-probability too low by `apart` nats."""

    apart = 0.0

    def collect(self, prompts, params=None):
        samples = super().collect(prompts, params)
        logps = [tuple(logp - self.apart for logp in row) for row in samples.engine_logps]
        return replace(samples, engine_logps=tuple(logps))


def test_the_ratio_over_the_sampler_s_support_is_exact(tmp_path):
    options = {"rollout": {"top_p": 0.5, "max_completion_length": 7}, "num_ppo_epochs": 2}
    trainer = ppo_case.trainer(tmp_path, policy_support="nucleus", kind=Watch, **options)
    trainer.step()
    first, later = trainer.ratios[0], trainer.ratios[-1]
    assert torch.allclose(first, torch.ones_like(first), atol=1e-6) and (later - 1).abs().max() > 1e-3
    experience, logps = trainer.experience, trainer.engine_logps
    mask = experience.mask_NS  # the engine drew from the support, and says with which probability
    assert torch.allclose(experience.old_logps_NS[mask], logps[mask], atol=1e-5)
    assert (experience.full_logps_NS[mask] < experience.old_logps_NS[mask]).all()
    scripted = ppo_case.trainer(tmp_path / "other", policy_support="nucleus", kind=Forgetful, **options)
    with pytest.raises(TrainingError, match=r"policy_support = nucleus: reply 0 has .* none recorded supports"):
        scripted.step()


class Watch(ppo_case.PPOTrainer):
    def update(self, experience):
        self.experience, self.ratios = experience, []
        return super().update(experience)

    def collect(self, prompts, params=None):
        samples = super().collect(prompts, params)
        self.drawn = [
            tuple(logp - math.log(kept) for logp, kept in zip(*row, strict=True))
            for row in zip(samples.engine_logps, samples.kept_mass, strict=True)
        ]
        return samples

    @property
    def engine_logps(self):
        return self.experience.tokens.on_actions(self.drawn)

    def policy_loss(self, logps_BS, batch):
        self.ratios.append((logps_BS.detach() - batch.old_logps_NS).exp()[batch.mask_NS])
        return super().policy_loss(logps_BS, batch)


class Forgetful(ppo_case.PPOTrainer):
    """Its engine tells nothing but ids."""

    def collect(self, prompts, params=None):
        return replace(super().collect(prompts, params), supports=(), engine_logps=(), kept_mass=())


def test_importance_weights_scale_the_policy_s_gradient(tmp_path):
    options = {"kl_coef": 0.0, "kind": type("Both", (ppo_case.Recorder, Apart), {}), **ONE_STEP}
    gradients, seen = {}, {}
    for apart, kind in ((0.0, "none"), (0.25, "token"), (1.0, "token"), (0.05, "sequence")):
        trainer = ppo_case.trainer(tmp_path / f"{apart}{kind}", importance_sampling_correction=kind, **options)
        trainer.given = [given()]
        trainer.engine_apart = apart
        trainer.given = [replace(given(), engine_logps=exact_logps(trainer, given(), apart))]
        seen[apart] = trainer.step()
        gradients[apart] = torch.cat([gradient.flatten() for gradient in trainer.steps[0][1]["policy"]])
    for apart, factor in ((0.25, math.exp(0.25)), (1.0, 2.0)):  # e is capped at 2
        assert (gradients[apart] - gradients[0.0] * factor).norm() < 1e-4 * gradients[apart].norm()
    assert (seen[0.25]["importance/mean"], seen[0.25]["importance/truncated"]) == (pytest.approx(math.exp(0.25)), 0.0)
    assert (seen[1.0]["importance/mean"], seen[1.0]["importance/truncated"]) == (2.0, 1.0)
    assert (seen[1.0]["importance/max"], seen[1.0]["importance/ess"]) == (2.0, 1.0)
    lengths = (3, 5, 2, 4)
    whole = sum(length * math.exp(0.05 * length) for length in lengths) / sum(lengths)
    squares = sum(length * math.exp(0.1 * length) for length in lengths) / sum(lengths)
    assert seen[0.05]["importance/ess"] == pytest.approx(whole**2 / squares, rel=1e-4) and whole**2 / squares < 0.999
    assert seen[0.05]["importance/max"] == pytest.approx(math.exp(0.25), rel=1e-4)
    assert seen[0.05]["importance/mean"] == pytest.approx(whole, rel=1e-4)
    assert seen[0.25]["engine/logp_diff_mean"] == pytest.approx(0.25, abs=1e-4)


def given():
    return ppo_case.samples((3, 5, 2, 4))


def exact_logps(trainer, samples, apart):
    from align.trainers.ppo.forward import reply_logprobs
    from align.trainers.ppo.types import TokenBatch

    tokens = TokenBatch.from_ids(samples.prompt_ids, samples.reply_ids)
    with torch.no_grad():
        logps = reply_logprobs(trainer.policy.raw, tokens, 1.0) - apart
    return tuple(tuple(row[mask].tolist()) for row, mask in zip(logps, tokens.mask_NS, strict=True))


def test_a_correction_needs_the_engine_s_log_probabilities(tmp_path):
    trainer = ppo_case.trainer(tmp_path, importance_sampling_correction="token", kind=Forgetful)
    with pytest.raises(TrainingError, match="the engine gave no log-probabilities for reply 0"):
        trainer.step()
    assert (tmp_path / "checkpoints" / "step-0").is_dir()
    assert issubclass(RolloutError, Exception)


def test_inner_epochs_stop_when_the_policy_has_gone_far_enough(tmp_path):
    trainer = ppo_case.trainer(tmp_path, target_kl=1e-7, num_ppo_epochs=3)
    metrics = trainer.step()
    assert (metrics["optimizer_steps"], metrics["steps_left_out"]) == (1, 5.0)
    assert all(parameter.grad is None for parameter in trainer.policy.parameters + trainer.critic.parameters)
    free = ppo_case.trainer(tmp_path / "free", target_kl=100.0, num_ppo_epochs=3).step()
    assert (free["optimizer_steps"], free["steps_left_out"]) == (6, 0.0)


def test_a_masked_reply_teaches_nothing(tmp_path):
    learnt = []
    for seed in (0, 1):
        samples, other = (
            ppo_case.samples((3, 5, 2, 4), finished=(True, False, True, True)),
            ppo_case.samples((3, 5, 2, 4), finished=(True, False, True, True), seed=9),
        )
        rows = [other if seed and row == 1 else samples for row in range(4)]
        samples = replace(samples, reply_ids=tuple(each.reply_ids[row] for row, each in enumerate(rows)))
        trainer = ppo_case.trainer(
            tmp_path / str(seed),
            kind=ppo_case.Recorder,
            reward=lambda prompts, completions, seed=seed: [1.0, 100.0 * seed, 2.0, 4.0],
            mask_truncated_completions=True,
            normalize_reward="running_mean_std",
            **ONE_STEP,
        )
        trainer.given = [samples]
        metrics = trainer.step()
        assert metrics["length/mean"] == 3.5 and metrics["end_rate"] == 0.75  # it is still seen
        learnt.append(weights(trainer.policy.raw))
        learnt.append(weights(trainer.critic.raw))
        assert trainer.reward_stats.count == 3
    assert torch.allclose(learnt[0], learnt[2], atol=1e-7) and torch.allclose(learnt[1], learnt[3], atol=1e-7)


def test_the_average_follows_the_policy_by_hand(tmp_path):
    trainer = ppo_case.trainer(tmp_path, kind=ppo_case.Recorder, ema_decay=0.5, critic_warmup_steps=1, num_iterations=2)
    trainer.given = [ppo_case.samples((3, 5, 2, 4, 3, 2, 5, 1))] * 2
    start = weights(trainer.policy.raw)
    trainer.step()
    after = weights(trainer.policy.raw)  # one of two steps was the critic's alone
    assert torch.allclose(weights(trainer.ema.module), 0.5 * start + 0.5 * after, atol=1e-7)
    trainer.save_ema(tmp_path / "ema")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "ema")
    assert torch.equal(weights(saved), weights(trainer.ema.module))
    trainer.state.global_step = 1
    folder = trainer.save_checkpoint()
    other = ppo_case.trainer(tmp_path / "other", ema_decay=0.5)
    other.load_checkpoint(folder)
    assert torch.equal(weights(other.ema.module), weights(trainer.ema.module))
    plain = ppo_case.trainer(tmp_path / "plain", num_iterations=1)
    plain.train()
    with pytest.raises(CheckpointError, match="was written without ema_decay"):
        other.load_checkpoint(plain.save_checkpoint())


def test_the_kl_coefficient_is_led_and_continues(tmp_path):
    options = {"kl_target": 0.01, "kl_horizon": 40, "kl_coef": 0.1, "reference": ppo_case.policy(5)}
    trainer = ppo_case.trainer(tmp_path, num_iterations=2, save_steps=1, **options)
    trainer.train()
    first, second = (line["kl_coef"] for line in trainer.state.log_history)
    kl = trainer.state.log_history[0]["kl/reply"]
    assert first == 0.1 and second == pytest.approx(0.1 * (1 + max(-0.2, min(kl / 0.01 - 1, 0.2)) * 8 / 40))
    again = ppo_case.trainer(tmp_path / "again", **options)
    again.load_checkpoint(tmp_path / "checkpoints" / "step-2")
    assert again.kl.coef == trainer.kl.coef != second


def test_the_ptx_coefficient_goes_where_the_norms_should_be(tmp_path):
    trainer = ppo_case.trainer(
        tmp_path,
        ptx_coef="auto",
        ptx_grad_norm_ratio=0.25,
        ptx_ratio=1,
        ptx_blocks=[[1, 2, 3, 4, 5], [7, 8, 9]] * 4,
        num_iterations=8,
        logging_steps=3,
        policy={"learning_rate": 1e-5},
    )
    seen = []
    for _ in range(6):
        seen.append(trainer.step())
        trainer.state.global_step += 1
    assert [line["ptx/coef"] for line in seen] != [0.1] * 6 and seen[0]["ptx/coef"] == pytest.approx(0.1)
    for before, line in pairwise(seen):
        move = max(0.5, min(0.25 / before["ptx/grad_norm_ratio"], 2.0))
        assert line["ptx/coef"] == pytest.approx(before["ptx/coef"] * move, rel=1e-4)


def test_guards_stop_with_the_state_before_the_iteration(tmp_path):
    options = {"reference": ppo_case.policy(5), "normalize_reward": "running_mean_std", "kl_target": 1.0}
    trainer = ppo_case.trainer(tmp_path, guards={"max_kl": 1e-4}, **options)
    untouched = (trainer.sampler.state_dict(), trainer.reward_stats.state_dict(), trainer.kl.coef)
    with pytest.raises(TrainingError, match=r"the KL to the reference is .* above guards.max_kl = 0\.0001: .*/step-0"):
        trainer.train()
    assert (trainer.sampler.state_dict(), trainer.reward_stats.state_dict(), trainer.kl.coef) == untouched
    trainer = ppo_case.trainer(tmp_path / "entropy", guards={"min_entropy": 50.0})
    with pytest.raises(
        TrainingError, match=r"the entropy is .* below guards.min_entropy = 50: the policy has collapsed"
    ):
        trainer.train()


def test_an_iteration_that_was_stopped_gives_its_random_numbers_back(tmp_path):
    def drawn(prompts, completions):
        return [random.random() for _ in completions]

    trainer = ppo_case.trainer(tmp_path, reward=drawn, guards={"min_entropy": 50.0})
    before = random.getstate()
    with pytest.raises(TrainingError, match="the policy has collapsed"):
        trainer.train()
    assert random.getstate() == before


def test_a_step_that_is_not_finite_can_be_left_out(tmp_path):
    class Broken(ppo_case.PPOTrainer):
        def policy_loss(self, logps_BS, batch):
            loss, stats = super().policy_loss(logps_BS, batch)
            self.calls += 1
            return loss * (math.nan if self.calls == 1 else 1.0), stats

        calls = 0

    trainer = ppo_case.trainer(tmp_path, kind=Broken, guards={"non_finite": "skip"})
    metrics = trainer.step()
    assert (metrics["steps_not_finite"], metrics["optimizer_steps"]) == (1.0, 1)
    assert weights(trainer.policy.raw).isfinite().all()


def test_equal_scores_are_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        ppo_case.trainer(tmp_path, reward=lambda prompts, completions: [2.0] * len(completions)).step()
    assert "iteration 1: all replies got the same score (2)" in caplog.text
    caplog.clear()
    quiet = {"guards": {"warn_equal_rewards": False}}
    with caplog.at_level(logging.WARNING):
        ppo_case.trainer(tmp_path / "b", reward=lambda prompts, completions: [2.0] * len(completions), **quiet).step()
    assert "same score" not in caplog.text


def test_training_a_second_time_goes_on_where_the_first_ended(tmp_path):
    trainer = ppo_case.trainer(tmp_path, num_iterations=1, eval_prompts=ppo_case.prompts(2))
    trainer.train()
    trainer.state.max_steps = 2
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2] and "eval/score" in lines[0]
