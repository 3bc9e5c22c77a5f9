"""The ppo stage with vLLM really sampling: in this process, and as a server that samples the next batch meanwhile."""

import contextlib
import json
import os

import psutil
import pytest
import torch

from align.recipe import Recipe
from align.stages import run_ppo
from align.trainers.ppo import PPOTrainer
from tests.align.stages.test_ppo import recipe
from tests.tiny_models import save_causal_lm

pytestmark = [pytest.mark.needs("vllm"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def one_thread_a_server(monkeypatch):
    """With two, log-probabilities depend in their last bits on what runs beside a reply."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


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


def test_a_server_samples_the_next_batch_and_ends_with_its_stage(tmp_path, monkeypatch):
    """That a stopped stage ends it too and goes on with the batch: test_ppo.py and trainers/test_overlap.py."""
    score, seen, ahead = PPOTrainer.score, [], []

    def watched(self, samples):
        seen.append(len(servers()))
        if self.state.global_step == 2:
            saved = tmp_path / "run/ppo/checkpoints/step-2/ppo_state.pt"
            ahead.extend(torch.load(saved, weights_only=True)["ahead"][0][0]["completions"]["token_ids"])
        return score(self, samples)

    monkeypatch.setattr(PPOTrainer, "score", watched)
    overlap = {"engine": "vllm_server", "overlap": True}
    summary = run_ppo.run_ppo(made(tmp_path, overlap, num_iterations=4))
    assert min(seen) >= 1 and not servers() and len(ahead) == 8
    found = [line for line in lines(tmp_path / "run/ppo") if "score/mean" in line]
    assert summary["steps"] == 4 and [line["engine/staleness"] for line in found] == [0.0, 1.0, 2.0, 2.0]
    assert found[0]["engine/logp_diff_max"] < 1e-3 < found[3]["engine/logp_diff_max"]
