"""The ppo stage with vLLM really sampling: in this process, and as a server that samples the next batch meanwhile."""

import contextlib
import json
import os

import psutil
import pytest
import torch

from align.recipe import Recipe
from align.runs.errors import TrainingError
from align.stages import run_ppo
from align.trainers.ppo import PPOTrainer
from reward.protocol import RewardError
from tests.align.stages.test_ppo import recipe
from tests.tiny_models import save_causal_lm

pytestmark = [pytest.mark.needs("vllm"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def one_thread_a_server(monkeypatch):
    """With two, log-probabilities depend in their last bits on what runs beside a reply."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


OVERLAP = {"engine": "vllm_server", "overlap": True}


def made(folder, rollout, **changes) -> Recipe:
    """With a policy of a width that vLLM has kernels for."""
    small = {"kv_cache_gib": 0.05, "max_num_seqs": 8, "dtype": "float32"}
    lengths = {"max_prompt_length": 50, "max_completion_length": 6, "top_p": 1.0}
    changes = {"importance_sampling_correction": "token", "evaluation": {"num_samples": 1}} | changes
    found = recipe(folder, rollout={**lengths, "vllm": small, **rollout}, save_steps=1, **changes)
    save_causal_lm(folder / "policy", seed=1, hidden_size=64, max_position_embeddings=512)
    return found


def servers() -> list[psutil.Process]:
    """Processes below this one that serve."""
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [process] if "rollouts.vllm.serve" in " ".join(process.cmdline()) else []
    return found


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_samples_in_this_process(tmp_path):
    summary = run_ppo.run_ppo(made(tmp_path, {"engine": "vllm"}))
    found = [line for line in lines(tmp_path / "run/ppo") if "score/mean" in line]
    assert summary["steps"] == 3 and len(found) == 3
    assert [line["engine/staleness"] for line in found] == [0.0, 0.0, 0.0]
    assert all(
        line["engine/logp_diff_max"] < 1e-3 and line["importance/mean"] == pytest.approx(1, abs=1e-3)
        for line in found[1:]
    )
    assert all(line["engine/probe_max"] < 1e-3 for line in found)


@pytest.mark.slow
def test_a_server_samples_the_next_batch_and_ends_with_its_stage(tmp_path, monkeypatch):
    """Stopped by a reward in the third iteration and continued: the same figures as in one go."""
    whole = made(tmp_path, OVERLAP, num_iterations=4)
    summary = run_ppo.run_ppo(whole)
    assert not servers()
    found = [line for line in lines(tmp_path / "run/ppo") if "score/mean" in line]
    assert summary["steps"] == 4 and [line["engine/staleness"] for line in found] == [0.0, 1.0, 2.0, 2.0]
    assert found[0]["engine/logp_diff_max"] < 1e-3 < found[3]["engine/logp_diff_max"]

    (tmp_path / "again").mkdir()
    part = made(tmp_path / "again", OVERLAP, num_iterations=4)
    score, seen = PPOTrainer.score, []

    def failing(self, samples):
        seen.append(len(servers()))
        if self.state.global_step == 2:
            raise RewardError("no verdict")
        return score(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(PPOTrainer, "score", failing)
        with pytest.raises(TrainingError, match=r"no verdict \(iteration 3\)"):
            run_ppo.run_ppo(part)
    assert min(seen) >= 1 and not servers()
    state = torch.load(tmp_path / "again/run/ppo/checkpoints/step-2/ppo_state.pt", weights_only=True)
    assert len(state["ahead"][0]["completions"]["token_ids"]) == 8
    run_ppo.run_ppo(part)
    assert not servers()
    kept = ("score/mean", "kl/reply", "engine/staleness", "policy/loss", "length/mean")
    again = [line for line in lines(tmp_path / "again/run/ppo") if "score/mean" in line]
    assert [[line.get(name) for name in kept] for line in again] == [
        [line.get(name) for name in kept] for line in found
    ]
