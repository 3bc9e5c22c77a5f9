"""vLLM in processes of their own: the first prompt of a process, distributed groups, several ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import on_ranks
from tests.rollouts.vllm import programs

pytestmark = [pytest.mark.needs("vllm"), pytest.mark.slow]
ROOT = Path(__file__).parents[3]


def test_a_process_that_begins_with_a_short_prompt_does_not_look_distributed_trains_on_and_keeps_a_group_of_one():
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.rollouts.vllm.programs", "alone"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr and "INFO" not in done.stderr, done.stderr


def test_two_ranks_have_an_engine_each_and_their_group():
    on_ranks(2, programs.ranks)
