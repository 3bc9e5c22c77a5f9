"""Ranks: alone, and two real processes over gloo."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from torch import distributed

from align.runs.ranks import any_rank, is_main, lost_rank
from tests.ranks import on_ranks


def agree(folder):
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    (folder / str(rank)).write_text(f"{is_main()}:{any_rank(rank == 1)}:{any_rank(False)}")


LOST = """
import os, signal, sys
import torch
import torch.distributed as dist
from align.runs.launch import guarded
from align.runs.ranks import any_rank
from data_formats.errors import DataError
def work():
    dist.init_process_group("gloo")
    any_rank(False)
    if dist.get_rank() == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        for _ in range(100):
            any_rank(False)
    except RuntimeError as error:
        if sys.argv[2] == "wrapped":
            raise DataError("something else") from error
        raise
with guarded(proceed="again") as ending:
    work()
sys.exit(ending.code)
"""


def test_one_process_is_the_main_rank():
    assert is_main() and any_rank(True) and not any_rank(False)


def test_before_the_ranks_have_met_the_launcher_says_who_is_first(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert not is_main()
    monkeypatch.setenv("RANK", "0")
    assert is_main()


def test_two_ranks_agree(tmp_path):
    on_ranks(2, agree, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["True:True:False", "False:True:False"]


@pytest.mark.parametrize(("victim", "how"), [(0, "plain"), (1, "wrapped")])
def test_a_killed_rank_ends_the_others_in_one_line(tmp_path, victim, how):
    """Two processes without a launcher, whose own words would come in between."""
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared |= {"PYTHONPATH": os.getcwd(), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, str(script), str(victim), how]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen(command, env={**os.environ, **shared, "RANK": rank}, **options) for rank in "01"]
    told = [rank.communicate(timeout=100)[1] for rank in ranks]
    assert ranks[victim].returncode == -signal.SIGKILL and ranks[1 - victim].returncode == 1
    assert told[1 - victim] == (
        "error: another rank was killed (for want of memory?) or lost; what is finished or saved is kept. "
        "Continue with: again\n"
    )


def test_an_error_of_ones_own_is_no_lost_rank(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not lost_rank(RuntimeError("size mismatch")) and not lost_rank(ValueError("gloo/"))
    assert lost_rank(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not lost_rank(RuntimeError("gloo/ Connection closed by peer"))
