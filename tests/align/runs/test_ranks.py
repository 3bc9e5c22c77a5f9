"""Ranks: alone, and two real processes over gloo."""

import os
import subprocess
import sys

from align.runs.ranks import any_rank, is_main

TWO = """
import pathlib, sys
import torch.distributed as dist
from align.runs.ranks import any_rank, is_main
from tests.ranks import leave
dist.init_process_group("gloo")
rank = dist.get_rank()
pathlib.Path(sys.argv[1], str(rank)).write_text(f"{is_main()}:{any_rank(rank == 1)}:{any_rank(False)}")
leave()
"""


def test_one_process_is_the_main_rank():
    assert is_main() and any_rank(True) and not any_rank(False)


def test_before_the_ranks_have_met_the_launcher_says_who_is_first(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert not is_main()
    monkeypatch.setenv("RANK", "0")
    assert is_main()


def test_two_ranks_agree(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["True:True:False", "False:True:False"]
