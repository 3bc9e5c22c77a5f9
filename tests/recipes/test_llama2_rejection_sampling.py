"""The whole chain of recipes/llama2_rejection_sampling.yaml in miniature: SFT, reward model, two rounds, PPO on top."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from align.recipe import load_recipe
from align.report import build_report
from align.stages.chain import run_chain
from tests.recipes.miniature import rejection_arguments
from tests.recipes.test_qwen_rlhf import leaves, lines

pytestmark = pytest.mark.slow  # tests/align/stages/test_rejection.py has the stage by itself

STAGES = ("sft", "rm", "rejection", "ppo")
SIZES = ("max_steps", "batch_size", "num_rounds", "save_steps", "logging_steps", "warmup_steps", "num_generations")
SIZES += ("max_completion_length", "num_samples", "limit", "num_iterations", "rollout_batch_size", "num_mini_batches")
SIZES += ("critic_warmup_steps", "micro_batch_size", "path", "data_root", "output_dir", "eval_num_replies")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama2")
    recipe = load_recipe("llama2_rejection_sampling", rejection_arguments(folder))
    return recipe, folder / "run", run_chain(recipe)


def test_only_sizes_differ_from_the_recipe(chain):
    recipe, _, _ = chain
    shipped, now = (leaves(one.model_dump()) for one in (load_recipe("llama2_rejection_sampling"), recipe))
    changed = {key.removeprefix(".") for key in now if now[key] != shipped[key]}
    assert not [key for key in changed if key.rpartition(".")[2] not in SIZES]


def test_every_stage_finished_and_ppo_stands_on_the_last_round(chain):
    _, run, summary = chain
    for stage in STAGES:
        assert (run / stage / "summary.json").is_file() and (run / stage / "model/model.safetensors").is_file()
    assert summary["rejection"]["origins"] == {
        "policy": {"kind": "stage", "value": "sft"},
        "reward": {"kind": "stage", "value": "rm"},
    }
    assert summary["ppo"]["origins"]["policy"] == {"kind": "stage", "value": "rejection"}
    places = ("sft", "rejection/rounds/1", "rejection/rounds/2", "rejection", "ppo")
    weights = [load_file(run / place / "model/model.safetensors") for place in places]

    def equal(one, other):
        return all(torch.equal(one[name], other[name]) for name in one)

    assert [equal(one, other) for one, other in pairwise(weights)] == [False, False, True, False]


def test_the_figures_follow_from_the_files(chain):
    _, run, summary = chain
    found = summary["rejection"]
    assert [one["round"] for one in found["rounds"]] == [1, 2]
    rows = lines(run / "rejection/rounds/2/samples.jsonl")
    scores = [[reply["score"] for reply in row["replies"]] for row in rows]
    assert found["score_single"] == pytest.approx(sum(map(sum, scores)) / (4 * len(scores)))
    assert found["score_best"] == pytest.approx(sum(map(max, scores)) / len(scores))
    greedy = lines(run / "rejection/eval.jsonl")
    assert len(greedy) == 3 and found["judge"] == "reward"
    assert found["score_greedy"] == pytest.approx(sum(row["rejection_reward"] for row in greedy) / 3, abs=1e-4)
    assert found["score_greedy_before"] == pytest.approx(sum(row["sft_reward"] for row in greedy) / 3, abs=1e-4)
    assert sum(found[outcome] for outcome in ("win", "tie", "loss")) == 3
    measured = [row[0] for row in found["headline"]]
    assert "held-out reward, greedy" in measured and "reward: one sample, best of 4" in measured


def test_the_report_has_the_stage(chain):
    _, run, _ = chain
    page = build_report(run).read_text(encoding="utf-8")
    assert "Rejection sampling" in page and "rounds, by the reward" in page


def test_the_same_command_changes_nothing(chain, capsys):
    recipe, run, summary = chain
    before = (run / "rejection/summary.json").read_bytes()
    run_chain(recipe)
    assert "rejection: finished before" in capsys.readouterr().out
    assert (run / "rejection/summary.json").read_bytes() == before
    assert json.loads((run / "summary.json").read_text())["rejection"] == summary["rejection"]
