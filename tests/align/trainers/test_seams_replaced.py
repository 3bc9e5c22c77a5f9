"""A seam that a subclass replaces is what `train()` runs: it is called as often as it should be, nothing goes round it,
and what it gives is what the next one is given."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback

from align.trainers.ppo import PPOTrainer
from align.trainers.ppo.types import Scores
from rollouts.scripted import ScriptedEngine
from tests.align.trainers import ppo_case
from tests.align.trainers.seams import counted
from tests.align.trainers.supervised_case import make_trainer, pair_rows, sft_rows

PTX = {"ptx_coef": 0.5, "ptx_ratio": 1, "ptx_micro_batch_size": 2, "ptx_blocks": [[1, 2, 3]] * 4}


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters])


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_train_calls_every_seam(tmp_path):
    """Two iterations of four prompts with two replies each; two minibatches of two micro-batches of two rows; an
    evaluation (sampled and greedy) before and after each; a checkpoint after each."""
    expected = {
        "step": 2,
        "sampling_params": 2 + 3,
        "collect": 2 + 3 * 2,
        "score": 2 + 3 * 2,
        "make_experience": 2,
        "penalize_scores": 2,
        "normalize_scores": 2,
        "shape_rewards": 2,
        "compute_advantages": 2,
        "update": 2,
        "minibatches": 2 * 2,  # for the passes without gradient, and for the one epoch
        "policy_loss": 2 * 2 * 2,
        "value_loss": 2 * 2 * 2,
        "ptx_loss": 2 * 2 * 2,
        "evaluate": 3,
        "log": 2 + 3,
        "save_checkpoint": 2,
        "load_checkpoint": 0,
        "save_model": 0,  # the stage's and the user's
        "save_critic": 0,
        "save_ema": 0,
    }
    kind = counted(PPOTrainer, list(expected))
    options = {"evaluation": {"every_steps": 1}, "save_steps": 1, "eval_prompts": ppo_case.prompts(3), **PTX}
    ppo_case.trainer(tmp_path, kind=kind, **options).train()
    assert dict(kind.calls) == expected
    again = counted(PPOTrainer, ["load_checkpoint", "step"])
    ppo_case.trainer(tmp_path, kind=again, **options | {"num_iterations": 3}).train(resume_from_checkpoint=True)
    assert dict(again.calls) == {"load_checkpoint": 1, "step": 1}


class Chain(PPOTrainer):
    """Replaces everything between the prompts and the update by marks, and notes what each is given."""

    def collect(self, prompts, params=None):
        self.params = params or self.sampling_params()
        lengths = [3, 5, 2, 4, 3, 6, 2, 4][: len(prompts) * self.params.n]
        self.samples = ppo_case.samples(lengths)
        return self.samples

    def sampling_params(self):
        return replace(super().sampling_params(), temperature=0.37)

    def score(self, samples):
        assert samples is self.samples
        return Scores(torch.arange(len(samples), dtype=torch.float64) / 8, {})

    def make_experience(self, samples, scores_N):
        assert samples is self.samples and scores_N.tolist() == [row / 8 for row in range(8)]
        self.experience, metrics = super().make_experience(samples, scores_N)
        return self.experience, {**metrics, "mine/experience": 1.5}

    def penalize_scores(self, scores_N, finished_N, lengths_N):
        assert scores_N.tolist() == [row / 8 for row in range(8)] and finished_N.tolist() == [True] * 8
        self.penalized_N = scores_N + 6
        return self.penalized_N

    def normalize_scores(self, scores_N, counts_N=None):
        assert scores_N is self.penalized_N
        self.normalized_N = scores_N + 1
        return self.normalized_N

    def shape_rewards(self, normalized_N, kl_NS, mask_NS):
        assert normalized_N is self.normalized_N and kl_NS.shape == mask_NS.shape
        self.rewards_NS = torch.full(mask_NS.shape, 0.25)
        return self.rewards_NS

    def compute_advantages(self, rewards_NS, values_NS, mask_NS):
        assert rewards_NS is self.rewards_NS
        self.advantages_NS = torch.arange(mask_NS.numel(), dtype=torch.float32).view(mask_NS.shape)
        return self.advantages_NS, -self.advantages_NS, 4.25

    def update(self, experience):
        assert experience is self.experience
        assert experience.normalized_N is self.normalized_N and experience.rewards_NS is self.rewards_NS
        assert experience.advantages_NS is self.advantages_NS
        self.batches = []
        return {**super().update(experience), "mine/update": 2.5}

    def policy_loss(self, logps_BS, batch):
        self.batches.append(batch.advantages_NS[:, 0].tolist())
        return super().policy_loss(logps_BS, batch)

    def value_loss(self, values_BS, batch):
        assert torch.equal(batch.returns_NS, -batch.advantages_NS)
        return super().value_loss(values_BS, batch)

    def evaluate(self, prompts=None, num_samples=1):
        return {**super().evaluate(prompts, num_samples), "eval/mine": 3.5}

    def log(self, metrics):
        super().log({**metrics, "mine/log": 4.5})


def test_each_seam_gets_what_the_one_before_gave(tmp_path):
    """The reward and the engine fail when they are asked: only `score` and `collect` may ask them."""

    def asked(prompts, completions):
        raise AssertionError("the reward was asked although `score` is replaced")

    trainer = ppo_case.trainer(
        tmp_path,
        kind=Chain,
        reward=asked,
        engine=ScriptedEngine([]),
        num_iterations=1,
        eval_prompts=ppo_case.prompts(4),
        evaluation={"every_steps": 1},
    )
    trainer.train()
    assert trainer.params.temperature in (0.0, 1.0)  # the evaluation's own, made from `sampling_params`
    rows = sorted(first for batch in trainer.batches for first in batch)
    assert rows == trainer.advantages_NS[:, 0].tolist()
    before, step, after = lines(tmp_path)
    assert before["eval/mine"] == after["eval/mine"] == 3.5 and before["eval/score"] == sum(range(4)) / 8 / 4
    assert (step["mine/experience"], step["mine/update"], step["advantages/std"]) == (1.5, 2.5, 4.25)
    assert [line["mine/log"] for line in (before, step, after)] == [4.5] * 3
    assert step["reward/mean"] == pytest.approx(7 + 3.5 / 8)


def test_what_may_fail_on_one_rank_goes_through_together(tmp_path):
    """Sampling, the reward, and the passes of the models; in an evaluation replies with their scores, and distances."""

    class Watched(PPOTrainer):
        def together(self, work):
            self.works = [*getattr(self, "works", []), work]
            return super().together(work)

    trainer = ppo_case.trainer(tmp_path, kind=Watched, num_iterations=1)
    trainer.train()
    assert len(trainer.works) == 4  # with the exact KL of an iteration that is logged
    trainer.evaluate(ppo_case.prompts(2))
    assert len(trainer.works) == 4 + 2 * 2  # sampled and greedy


def test_sampling_params_rule_what_is_sampled(tmp_path):
    class Brief(PPOTrainer):
        def sampling_params(self):
            return replace(super().sampling_params(), max_new_tokens=2)

    trainer = ppo_case.trainer(tmp_path, kind=Brief, eval_prompts=ppo_case.prompts(3))
    trainer.train()
    assert all(line.get("length/max", 0) <= 2 and line.get("eval/length", 0) <= 2 for line in lines(tmp_path))


def nothing(self, tensor_BS, batch):
    return 0 * tensor_BS.sum(), {}


def no_ptx(self, input_ids_BT, mask_BT):
    return 0 * PPOTrainer.ptx_loss(self, input_ids_BT, mask_BT)


@pytest.mark.parametrize(
    ("replaced", "policy_moves", "critic_moves"),
    [
        ({}, True, True),
        ({"policy_loss": nothing}, True, True),  # ptx alone moves the policy
        ({"ptx_loss": no_ptx}, True, True),
        ({"policy_loss": nothing, "ptx_loss": no_ptx}, False, True),
        ({"value_loss": nothing}, True, False),
        ({"update": lambda self, experience: {}}, False, False),
    ],
    ids=lambda case: "+".join(case) if isinstance(case, dict) else str(case),
)
def test_a_replaced_loss_is_the_whole_loss(tmp_path, replaced, policy_moves, critic_moves):
    kind = type("Replaced", (PPOTrainer,), replaced)
    trainer = ppo_case.trainer(tmp_path, kind=kind, num_iterations=1, **PTX)
    policy, critic = weights(trainer.policy), weights(trainer.critic)
    trainer.train()
    assert (not torch.equal(policy, weights(trainer.policy))) == policy_moves
    assert (not torch.equal(critic, weights(trainer.critic))) == critic_moves


def test_a_replaced_loop_step_is_all_that_happens(tmp_path):
    """`step`, `evaluate`, `save_checkpoint`, `load_checkpoint` and `log` without the originals."""
    found = []

    class Loop(PPOTrainer):
        def step(self):
            return {"mine": float(self.state.global_step)}

        def evaluate(self, prompts=None, num_samples=1):
            return {"eval/mine": 1.0}

        def save_checkpoint(self):
            found.append(("save", self.state.global_step))

        def load_checkpoint(self, folder):
            found.append(("load", folder.name))
            self.state.global_step = 2

        def log(self, metrics):
            found.append(metrics)

    class Events(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            found.append(("end", state.global_step))

    options = {"evaluation": {"every_steps": 2}, "save_steps": 2, "eval_prompts": ppo_case.prompts(2)}
    trainer = ppo_case.trainer(tmp_path, kind=Loop, **options)
    trainer.add_callback(Events)
    trainer.train()
    evaluated = {"eval/mine": 1.0}
    assert found == [evaluated, ("end", 1), {"mine": 0.0}, ("end", 2), {"mine": 1.0}, evaluated, ("save", 2)]
    assert not trainer.checkpoint_dir.exists() and not trainer.state.log_history
    found.clear()
    ppo_case.trainer(tmp_path, kind=Loop, num_iterations=3, **options).train(tmp_path / "step-2")
    assert found == [("load", "step-2"), evaluated, {"mine": 2.0}, evaluated, ("save", 3)]  # one at the end


@pytest.mark.parametrize(
    ("kind", "rows", "own"),
    [
        ("sft", sft_rows(16), {"token_weights": 2 + 2}),
        (
            "reward",
            pair_rows(16),
            {"pair_scores": 2 + 1, "compute_pair_losses": 2 + 1, "note_margins": 2, "log": 3},
        ),
    ],
)
def test_the_supervised_trainers_call_every_seam(tmp_path, kind, rows, own):
    """One optimizer step of two micro-batches of 16 rows, and an evaluation of one batch."""
    expected = own | {
        "row_length": 16,
        "get_train_dataloader": 1,
        "count_items": 2,
        "compute_loss": 2,
        "mean_over_step": 2,
        "prediction_step": 1,
    }
    trainer = make_trainer(kind, tmp_path, rows, micro=4, heldout=rows[:4])
    trainer.__class__ = counted(type(trainer), list(expected))
    trainer.train()
    trainer.evaluate()
    assert dict(type(trainer).calls) == expected
