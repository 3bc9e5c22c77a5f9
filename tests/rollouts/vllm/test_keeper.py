"""Who starts a shared server again, and how often. The server here is an object that counts; the folder is real."""

import threading
import time
from types import SimpleNamespace

import pytest

from rollouts.errors import RolloutError
from rollouts.vllm.http import ServerGone
from rollouts.vllm.keeper import Guest, Keeper


class Counting:
    """Starts and kills are counted; `problems` are raised by the next starts."""

    def __init__(self, home, problems=()):
        self.home, self.log, self.problems = home, home / "log", list(problems)
        self.restarts = self.kills = self.stops = 0

    @property
    def address(self):
        return SimpleNamespace(url=f"http://127.0.0.1:{8000 + self.restarts}")

    def restart(self):
        self.restarts += 1
        if self.problems and (problem := self.problems.pop(0)):
            raise problem

    def kill(self):
        self.kills += 1

    def stop(self):
        self.stops += 1


@pytest.fixture
def made(tmp_path):
    keepers = []

    def make(*, max_restarts=2, problems=(), dress=lambda: None, watch=False):
        server = Counting(tmp_path, problems)
        keepers.append(Keeper(server, max_restarts, dress, watch=watch))
        return server, keepers[-1]

    yield make
    for keeper in keepers:
        keeper.close()


def test_one_failure_is_one_restart_however_many_saw_it(made):
    dressed = []
    server, keeper = made(dress=lambda: dressed.append(1))
    threads = [threading.Thread(target=keeper.recover, args=(0, "died")) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (server.restarts, len(dressed), keeper.turn) == (1, 1, 1)
    keeper.recover(1, "died again")
    assert (server.restarts, len(dressed), keeper.turn) == (2, 2, 2)


def test_restarts_end(made):
    server, keeper = made(max_restarts=1)
    keeper.recover(0, "died")
    with pytest.raises(RolloutError, match=r"hangs, and was started again 1 times already \(max_restarts\): its log"):
        keeper.recover(1, "hangs")
    assert server.restarts == 1


def test_a_restart_that_fails_at_its_weights_counts_too(made):
    server, keeper = made(max_restarts=2, problems=[None, None])

    def dress():
        if server.restarts == 1:
            raise ServerGone("broke off")

    keeper._dress = dress
    keeper.recover(0, "died")
    assert server.restarts == 2 and keeper.turn == 1
    with pytest.raises(RolloutError, match="2 times already"):
        keeper.recover(1, "died")


def test_the_server_of_another_turn_is_not_cut(made):
    server, keeper = made()
    keeper.cut(0)
    keeper.recover(0, "died")
    keeper.cut(0)
    assert server.kills == 1


def test_a_guest_gets_its_restart_and_learns_the_new_place(made, tmp_path):
    server, keeper = made(watch=True)
    guest = Guest(tmp_path, patience=20.0)
    assert (guest.turn, guest.url) == (0, "http://127.0.0.1:8000")
    guest.cut(0)
    guest.recover(0, "gave no answer")
    assert (guest.turn, guest.url) == (1, "http://127.0.0.1:8001") == (keeper.turn, keeper.url)
    assert server.restarts == 1 and server.kills == 1


def test_a_guest_hears_why_there_will_be_no_other(made, tmp_path):
    made(watch=True, problems=[RolloutError("no room on the GPU")])
    with pytest.raises(RolloutError, match="no room on the GPU"):
        Guest(tmp_path, patience=20.0).recover(0, "died")


def test_a_guest_does_not_wait_for_ever(made, tmp_path):
    made(watch=False)
    guest, began = Guest(tmp_path, patience=0.2), time.monotonic()
    with pytest.raises(RolloutError, match="gave no answer, and its owner did not start it again"):
        guest.recover(0, "gave no answer")
    assert time.monotonic() - began < 5
    with pytest.raises(RolloutError, match="the rank that owns the vLLM server has closed it"):
        _ = Guest(tmp_path / "gone", patience=0.2).turn
