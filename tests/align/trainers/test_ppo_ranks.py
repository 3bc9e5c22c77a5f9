import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("ppo_ranks.py")


def run(out: Path, ranks: int, mode: str) -> None:
    out.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(SCRIPT), str(out), mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("mode", ["given", pytest.param("composed", marks=pytest.mark.slow)])
def test_two_ranks_learn_what_one_learns(tmp_path, mode):
    learnt = {}
    for ranks in (1, 2):
        run(tmp_path / str(ranks), ranks, mode)
        learnt[ranks] = torch.load(tmp_path / str(ranks) / "learnt.pt", weights_only=True)
    for one, two in zip(learnt[1]["weights"], learnt[2]["weights"], strict=True):
        assert torch.allclose(one, two, rtol=1e-8, atol=1e-10)
    for one, two in zip(learnt[1]["history"], learnt[2]["history"], strict=True):
        assert one.keys() == two.keys()
        assert {name: two[name] for name in one} == pytest.approx(one, rel=1e-6, abs=1e-9)
        assert ("score/length_score/mean" in one) == (mode == "composed")


@pytest.mark.slow
def test_two_ranks_agree_with_the_independent_ppo(tmp_path):
    """Under a covering set of all options: gradients, experience and the log."""
    run(tmp_path / "run", 2, "reference")
    found = json.loads((tmp_path / "run" / "found.json").read_text())
    assert len(found) > 20
    assert {name: one["wrong"] for name, one in found.items() if one["wrong"]} == {}
    assert all({"policy gradient", "value gradient", "advantages"} <= one["errors"].keys() for one in found.values())


@pytest.mark.slow
def test_two_ranks_resume_bit_for_bit(tmp_path):
    run(tmp_path / "run", 2, "resume")
    whole, again = (torch.load(tmp_path / "run" / name, weights_only=True) for name in ("whole.pt", "again.pt"))
    assert all(torch.equal(a, b) for a, b in zip(whole["weights"], again["weights"], strict=True))
    assert whole["history"] == again["history"]


@pytest.mark.slow
def test_an_engine_that_fails_on_one_rank_stops_all(tmp_path):
    run(tmp_path / "run", 2, "fail")
    said = [(tmp_path / "run" / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and said[0].startswith("no answer (iteration 1); the state before it is saved in ")
