"""vLLM in processes of their own: the first prompt of a process, distributed groups, several ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.needs("vllm"), pytest.mark.slow]
ROOT = Path(__file__).parents[3]


def run(*command: str) -> subprocess.CompletedProcess:
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False
    )


def program(name: str) -> subprocess.CompletedProcess:
    return run("-m", "tests.rollouts.vllm.programs", name)


def test_a_short_first_prompt_in_bfloat16_does_not_kill_the_process():
    done = program("short-prompt-first")
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_a_group_the_process_does_not_look_distributed_and_trains_on():
    done = program("alone")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr and "INFO" not in done.stderr, done.stderr


def test_a_group_of_one_rank_is_left_alone():
    done = program("ranks")
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_ranks_have_an_engine_each_and_their_group():
    done = run("-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "tests.rollouts.vllm.programs", "ranks")
    assert done.returncode == 0, done.stderr[-3000:]
