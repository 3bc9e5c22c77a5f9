"""Ranks: alone, and two real processes over gloo."""

import ast
import os
import signal
import socket
import subprocess
import sys

import pytest
from torch import distributed

from align.runs.errors import TrainingError
from align.runtime.errors import AlignError
from align.runtime.ranks import agree, any_rank, is_main, lost_rank, patience
from tests.ranks import on_ranks


def two_ranks(folder):
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    told = [is_main(), any_rank(rank == 1), any_rank(False)]
    told += [agree(lambda: rank, ValueError), agree(lambda: "work", ValueError, mine=is_main())]
    wordless = AlignError()
    for failing, error in (
        ({0}, AlignError("no room")),
        ({1}, KeyError("a")),
        ({0, 1}, AlignError(f"{rank}")),
        ({0}, wordless),
    ):
        try:
            agree(lambda failing=failing, error=error: fail(error) if rank in failing else None, TrainingError)
        except Exception as caught:
            told.append((type(caught).__name__, str(caught)))
    (folder / str(rank)).write_text(repr(told))


def fail(error):
    raise error


LOST = """
import os, signal, sys, time
import torch
import torch.distributed as dist
from align.runs.launch import guarded
from align.runtime.ranks import any_rank, patience
from data_formats.errors import DataError
def work():
    dist.init_process_group("gloo")
    any_rank(False)
    if sys.argv[2] == "slow":
        os.environ["ALIGN_WAIT_MINUTES"] = "0.1"
        dist.distributed_c10d._set_pg_timeout(patience())
    if dist.get_rank() == int(sys.argv[1]):
        time.sleep(12) if sys.argv[2] == "slow" else os.kill(os.getpid(), signal.SIGKILL)
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


@pytest.mark.slow
def test_two_ranks_agree_on_what_went_wrong(tmp_path):
    """Who fails raises its own error as it came, the other the words of the first that failed."""
    on_ranks(2, two_ranks, tmp_path)
    first, second = (ast.literal_eval((tmp_path / rank).read_text()) for rank in "01")
    assert first[:5] == [True, True, False, 0, "work"] and second[:5] == [False, True, False, 1, None]
    assert first[5:] == [
        ("AlignError", "no room"),
        ("TrainingError", "KeyError: 'a'"),
        ("AlignError", "0"),
        ("AlignError", ""),
    ]
    assert second[5:] == [
        ("TrainingError", "no room"),
        ("KeyError", "'a'"),
        ("AlignError", "1"),
        ("TrainingError", "AlignError: "),
    ]


def test_one_rank_alone_works_or_raises_what_came():
    assert agree(lambda: 3, TrainingError) == 3 and agree(lambda: 3, TrainingError, mine=False) is None
    with pytest.raises(ZeroDivisionError):
        agree(lambda: 1 / 0, TrainingError)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "how"), [(0, "plain"), (1, "wrapped"), (1, "slow")])
def test_a_killed_or_slow_rank_ends_the_others_in_one_line(tmp_path, victim, how):
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
    assert ranks[victim].returncode == (1 if how == "slow" else -signal.SIGKILL) and ranks[1 - victim].returncode == 1
    slow = "did not come within 0.1 minutes (ALIGN_WAIT_MINUTES): it is stuck, or slower than that"
    what = slow if how == "slow" else "was killed (for want of memory?) or lost"
    kept = "what is finished or saved is kept. Continue with: again"
    assert told[1 - victim] == f"error: another rank {what}; {kept}\n"


def test_an_error_of_ones_own_is_no_lost_rank(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ALIGN_WAIT_MINUTES", "soon")
    with pytest.raises(AlignError, match="a number of minutes above 0, found 'soon'"):
        patience()
    assert not lost_rank(RuntimeError("size mismatch")) and not lost_rank(ValueError("gloo/"))
    assert lost_rank(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not lost_rank(RuntimeError("gloo/ Connection closed by peer"))
