"""Unit tests as the reward of ppo and of rejection sampling, end to end on a tiny model that cannot program."""

import json

import pytest

from align.stages import run_ppo, run_rejection
from align.stages.rewards import build_reward
from reward.sandbox.start import Budget
from reward.unit_tests import REASONS, UnitTests
from tests.align.stages import rejection_case, test_ppo
from tests.sandboxes import require
from tests.tiny_models import byte_tokenizer

PART = {"kind": "tests", "partial": True, "isolation": "best", "seconds": 1, "workers": 2}
ROW = {"prompt": "def f(x):\n    '''x'''\n", "test": "def check(c):\n    assert c(1) == 1\n", "entry_point": "f"}


def test_the_part_of_a_recipe_is_the_reward(tmp_path):
    chosen = test_ppo.recipe(tmp_path, reward_from=None, reward=[PART | {"missing": 0.5, "name": "run"}])
    reward = build_reward(chosen, byte_tokenizer())
    assert isinstance(reward, UnitTests) and (reward.partial, reward.missing, reward.name) == (True, 0.5, "run")
    assert reward.budget == Budget(isolation="best", seconds=1, workers=2)


@pytest.mark.slow
def test_ppo_is_rewarded_by_tests(tmp_path):
    require()
    rollout = {"max_prompt_length": 100, "max_completion_length": 6}
    chosen = test_ppo.recipe(tmp_path, reward_from=None, reward=[PART], rollout=rollout, num_iterations=2)
    for name in ("prompts", "held"):
        test_ppo.write_rows(tmp_path / f"{name}.jsonl", [ROW] * 4)
    run_ppo.run_ppo(chosen)
    lines = [json.loads(line) for line in (tmp_path / "run/ppo/metrics.jsonl").read_text().splitlines()]
    learnt = [line for line in lines if "score/mean" in line]
    assert len(learnt) == 2
    for line in learnt:
        shares = [line[f"score/{reason}/mean"] for reason in REASONS]
        assert line["score/mean"] == 0.0 and sum(shares) == pytest.approx(1.0)  # each reply has its reason
    samples = [json.loads(line) for line in (tmp_path / "run/ppo/samples.jsonl").read_text().splitlines()]
    assert all(sum(row[f"score/{reason}"] for reason in REASONS) == 1 for row in samples)


@pytest.mark.slow
def test_rejection_sampling_keeps_what_passes(tmp_path):
    """Every reply scores 0 (or passes a test by luck): all is kept above no threshold, and the reasons stand beside."""
    require()
    rollout = {"num_generations": 8, "max_prompt_length": 200, "max_completion_length": 40, "batch_size": 16}
    changes = {"reward": PART, "num_rounds": 1, "eval_data": [], "rollout": rollout}
    chosen = rejection_case.recipe(tmp_path, **changes)
    test_ppo.write_rows(tmp_path / "prompts.jsonl", [ROW | {"prompt": ROW["prompt"] * n} for n in (1, 2)])
    run_rejection.run_rejection(chosen)
    file = tmp_path / "run/rejection/rounds/1/samples.jsonl"
    replies = [one for line in file.read_text().splitlines() for one in json.loads(line)["replies"]]
    assert len(replies) == 16 and all(sum(one["parts"].values()) == 1 and one["score"] == 0 for one in replies)
