"""Iterations in which the critic alone learns, from replies that were sampled before."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from align.data.stored_replies import read_stored
from align.runs.errors import CheckpointError
from align.trainers.ppo import PPOTrainer
from align.trainers.ppo.types import Samples, Scores
from align.trainers.ppo.warmup import WarmupRollouts
from rollouts.protocol import SamplingParams
from tests.align.trainers import ppo_case
from tests.align.trainers.test_ppo_state import assert_equal, everything, make

WARM = {  # two iterations and a half; and what asks an engine for more than replies, of which a file has nothing
    "critic_warmup_steps": 5,
    "importance_sampling_correction": "token",
    "policy_support": "nucleus",
}


class Watched(PPOTrainer):
    """Notes every iteration's replies, and the critic after it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sampled, self.critics = {}, {}

    def collect(self, prompts, params=None):
        samples = super().collect(prompts, params)
        self.sampled[self.state.global_step] = samples
        return samples

    def step(self):
        metrics = super().step()
        self.critics[self.state.global_step] = [weight.detach().clone() for weight in self.critic.parameters]
        return metrics


def exact(folder: Path, **options) -> Watched:
    models = {"policy_model": ppo_case.exact(ppo_case.policy()), "critic_model": ppo_case.ExactCritic()}
    trainer = ppo_case.trainer(folder, kind=Watched, num_iterations=3, **models, **{**WARM, **options})
    trainer.train()
    return trainer


def told(samples: Samples) -> Samples:
    """What a file has of them."""
    return replace(samples, engine_logps=(), kept_mass=(), supports=(), weight_versions=())


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_critic_learns_from_stored_replies_what_it_would_from_the_same_ones_sampled(tmp_path):
    fresh = exact(tmp_path / "fresh")
    stored = Samples.concatenate([told(fresh.sampled[at]) for at in (0, 1)])
    found = exact(tmp_path / "stored", warmup=WarmupRollouts(stored))
    assert list(found.sampled) == [2]  # in which the policy learns too, though the critic has its first step alone
    assert found.policy_version == fresh.policy_version == 1
    assert all(same(found.critics[at], fresh.critics[at]) for at in (0, 1))
    assert not same(found.critics[0], found.critics[1])
    assert found.sampled[2].prompts == fresh.sampled[0].prompts  # the prompts' order stood still
    first, other = (trainer.state.log_history[0] for trainer in (fresh, found))
    assert all(other[name] == first[name] for name in ("score/mean", "kl/reply", "entropy", "value/explained_variance"))


def read(last: int) -> WarmupRollouts:
    """Replies enough for one iteration and a half: the second goes round."""
    samples = ppo_case.samples([3, 5, 2, 7, 4, 4, 6, 1, 2, 3, 5, last], to_a_prompt=2)
    return WarmupRollouts(samples)


class Crash(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise InterruptedError("in the second iteration's end, which is not saved")


def stored_run(folder: Path, last: int = 5, **options):
    return make(folder, critic_warmup_steps=8, num_iterations=3, ptx_coef=0.0, warmup=read(last), **options)


def test_a_run_on_stored_replies_goes_on_where_it_was(tmp_path):
    whole = stored_run(tmp_path / "whole")
    torch.manual_seed(3)
    whole.train()
    first = stored_run(tmp_path / "run", callbacks=[Crash()])
    torch.manual_seed(3)
    with pytest.raises(InterruptedError):
        first.train()
    second = stored_run(tmp_path / "run")
    second.train(resume_from_checkpoint=True)
    assert second.warmup.state_dict() == whole.warmup.state_dict() == {"position": 8}
    assert_equal(everything(second), everything(whole))
    with pytest.raises(CheckpointError, match=r"ppo\.critic_warmup_from: .*--accept ppo\.critic_warmup_from"):
        stored_run(tmp_path / "run", last=6).train(resume_from_checkpoint=True)


def test_ranks_share_the_stored_replies_in_order(tmp_path):
    stored = ppo_case.samples([3] * 12, to_a_prompt=2)
    whole = WarmupRollouts(stored)
    alone = [whole.next(4, 2).replies for _ in range(3)]
    assert alone == [
        tuple(map(str, range(8))),
        (*map(str, range(8, 12)), *map(str, range(4))),
        tuple(map(str, range(4, 12))),
    ]
    for ranks in (2, 4):
        readers = [WarmupRollouts(stored) for _ in range(ranks)]
        for rank, reader in enumerate(readers):
            reader.load_state_dict({"position": 4})  # saved by whatever number of ranks
            readers[rank] = reader.next(4, 2, rank, ranks)
        assert Samples.concatenate(readers).replies == alone[1]


def test_what_a_warm_up_samples_is_kept_as_a_file(tmp_path):
    samples = ppo_case.samples([3, 7, 2, 4], finished=[True, False, False, True], to_a_prompt=2)
    scores = Scores(torch.tensor([0.5, float("nan"), 1.0, -2.0], dtype=torch.float64), {})
    kept = WarmupRollouts(folder=tmp_path / "warmup", weights="abc")
    kept.keep(3, samples, scores, SamplingParams(n=2, top_p=0.9, max_new_tokens=7))
    first, second = read_stored(tmp_path / "warmup" / "3.jsonl")
    assert (first.prompt, second.prompt) == (samples.prompts[0], samples.prompts[2]) and first.iteration == 3
    replies = [*first.replies, *second.replies]
    assert [one.stop for one in replies] == ["end", "length", "other", "end"]
    assert tuple(one.token_ids for one in replies) == samples.reply_ids and {one.weights for one in replies} == {"abc"}
    how = {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "min_tokens": 0, "max_tokens": 7}
    assert all(one.sampling == how for one in replies)
    assert '"score": null' in (tmp_path / "warmup" / "3.jsonl").read_text()
    assert not WarmupRollouts().keeps and not WarmupRollouts(samples, folder=tmp_path).keeps and kept.keeps
