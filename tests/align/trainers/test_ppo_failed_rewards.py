"""`on_reward_error`: replies that the reward fails on teach nothing, are counted, and stop the run above a share."""

import json
import logging
import re

import pytest
import torch

from align.recipe.ppo_section import PPOSection
from align.runs.errors import TrainingError
from reward.combined import CombinedReward, Part
from reward.protocol import RewardError
from reward.sources import FunctionReward
from tests.align.trainers import ppo_case

ONE_STEP = {"num_mini_batches": 1, "num_iterations": 1, "rollout": {"num_generations": 1}}


class FailsOn:
    """`ppo_case.length_score`, but no verdict on the replies named `bad` (`samples` names them by row)."""

    name = "picky"

    def __init__(self, *bad):
        self.bad = bad

    def score(self, samples):
        texts = [sample.completion for sample in samples]
        for text in texts:
            if text in self.bad:
                raise RewardError(f"no verdict on {text}")
        return ppo_case.length_score(None, texts)


def rows_of(samples, rows):
    return type(samples)(
        *([getattr(samples, name)[row] for row in rows] for name in type(samples).__dataclass_fields__)
    )


def gradients(folder, samples, **options):
    trainer = ppo_case.trainer(
        folder,
        kind=ppo_case.Recorder,
        policy_model=ppo_case.exact(ppo_case.policy(0)),
        reference=ppo_case.exact(ppo_case.policy(5)),
        critic_model=ppo_case.ExactCritic(1),
        rollout_batch_size=len(samples),
        **ONE_STEP | {"normalize_reward": "running_mean_std", "kl_coef": 0.1} | options,
    )
    trainer.given = [samples]
    metrics = trainer.step()
    (_, found) = trainer.steps[0]
    return {name: torch.cat([grad.flatten() for grad in grads]) for name, grads in found.items()}, metrics, trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_aggregation": "sequence"},
        {"kl_in": "loss", "kl_estimator": "k2"},
    ],
)
def test_gradients_are_those_of_the_batch_without_the_replies_that_failed(options, tmp_path):
    whole = ppo_case.samples((3, 5, 2, 4, 6), finished=(True, True, True, False, True))
    found, metrics, trainer = gradients(tmp_path / "all", whole, reward=FailsOn("1"), on_reward_error="mask", **options)
    kept = [0, 2, 3, 4]
    expected, plain, other = gradients(tmp_path / "kept", rows_of(whole, kept), reward=FailsOn(), **options)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    assert trainer.reward_stats.state_dict() == pytest.approx(other.reward_stats.state_dict())
    assert trainer.reward_stats.count == 4 and metrics["reward/failed"] == 1.0
    for name in ("score/mean", "score/std", "reward/mean", "reward/std"):
        assert metrics[name] == pytest.approx(plain[name])
    assert "reward/failed" not in plain


def test_with_truncated_replies_masked_too(tmp_path):
    whole = ppo_case.samples((3, 5, 2, 4, 6), finished=(True, True, True, False, True))
    options = {"mask_truncated_completions": True}
    found, *_ = gradients(tmp_path / "all", whole, reward=FailsOn("1"), on_reward_error="mask", **options)
    expected, *_ = gradients(tmp_path / "kept", rows_of(whole, [0, 2, 4]), reward=FailsOn(), **options)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def test_they_are_told_and_counted(tmp_path, caplog):
    parts = [Part(FailsOn("2"), 1.0), Part(FunctionReward(ppo_case.vowels), 0.5)]
    trainer = ppo_case.trainer(
        tmp_path, kind=ppo_case.Recorder, reward=CombinedReward(parts), on_reward_error="mask", num_iterations=1
    )
    trainer.given = [ppo_case.samples((3, 5, 2, 4, 3, 2, 5, 1))]
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert any(
        message == "iteration 1: 1 of 8 replies cannot be judged and teach nothing; the first: no verdict on 2"
        for message in caplog.messages
    )
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    kept = list("0134567")
    scores = ppo_case.length_score(None, kept)
    assert line["reward/failed"] == 1.0 and line["score/picky/mean"] == pytest.approx(sum(scores) / 7)
    rows = [json.loads(row) for row in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["score"] is None for row in rows] == [row == 2 for row in range(8)]
    assert rows[2]["reward"] is None and rows[2]["score/vowels"] is None and rows[2]["kl"] is not None


@pytest.mark.parametrize(("bad", "stops"), [(("0", "1"), False), (("0", "1", "5"), True)])
def test_more_than_a_quarter_stops_the_run_with_its_state_saved(bad, stops, tmp_path):
    trainer = ppo_case.trainer(tmp_path, kind=ppo_case.Recorder, reward=FailsOn(*bad), on_reward_error="mask")
    trainer.given = [ppo_case.samples((3, 5, 2, 4, 3, 2, 5, 1))]
    if not stops:
        assert trainer.step()["reward/failed"] == 2.0
        return
    with pytest.raises(TrainingError, match=r"no verdict on 5; that is reply number 3 that cannot be judged .*step-0$"):
        trainer.step()
    assert (tmp_path / "checkpoints" / "step-0").is_dir()


def test_a_call_that_fails_once_is_made_again(tmp_path):
    failures = iter([True, False])

    def once(prompts, completions):
        if next(failures):
            raise OSError("gone for a moment")
        return ppo_case.vowels(prompts, completions)

    metrics = ppo_case.trainer(tmp_path, reward=once, on_reward_error="retry").step()
    assert metrics["score/mean"] == ppo_case.trainer(tmp_path / "plain").step()["score/mean"]


def test_held_out_replies_that_fail_are_in_no_mean(tmp_path):
    def fails(prompts, completions):
        if any(prompt[-1]["content"] == "say ab" for prompt in prompts):
            raise ValueError("not this one")
        return [2.0 + (prompt[-1]["content"] == "say a") for prompt in prompts]

    options = {"eval_prompts": ppo_case.prompts(6), "gold": FunctionReward(fails, "gold")}
    trainer = ppo_case.trainer(tmp_path, on_reward_error="mask", **options)
    asked = [prompt.messages[-1].content for prompt in trainer.eval_prompts]
    bad = asked.count("say ab")
    assert 0 < bad <= 6 / 4
    found = trainer.evaluate(num_samples=2)
    right = [2.0 + (text == "say a") for text in asked if text != "say ab"]
    assert found["eval/gold"] == found["eval/gold_greedy"] == pytest.approx(sum(right) / len(right))
    assert (found["eval/failed"], found["eval/gold_failed"], found["eval/gold_failed_greedy"]) == (0.0, 2 * bad, bad)
    with pytest.raises(
        TrainingError, match=r"'gold' failed: ValueError: not this one \(evaluation after iteration 0\)"
    ):
        ppo_case.trainer(tmp_path / "stops", **options).evaluate()


def test_the_key_is_one_of_three_words():
    with pytest.raises(ValueError, match=re.escape("'stop', 'retry' or 'mask'")):
        PPOSection(data=({"path": "unused"},), num_iterations=9, critic_warmup_steps=0, on_reward_error="skip")
