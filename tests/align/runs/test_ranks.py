"""Ranks: alone, and two real processes over gloo."""

from torch import distributed

from align.runs.ranks import any_rank, is_main
from tests.ranks import on_ranks


def agree(folder):
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    (folder / str(rank)).write_text(f"{is_main()}:{any_rank(rank == 1)}:{any_rank(False)}")


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
