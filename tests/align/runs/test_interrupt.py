"""Ctrl-C, with real signals."""

import os
import signal
import threading
import time

import pytest

from align.runs import interrupt
from align.runs.interrupt import StopFlag


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_the_flag_and_the_handler_goes_back(number):
    before = signal.getsignal(number)
    with StopFlag() as flag:
        assert not flag.is_set()
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert flag.is_set()
        os.kill(os.getpid(), number)  # passed on by a launcher: the same one
        time.sleep(0.01)
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    monkeypatch.setattr(interrupt, "_SAME_SIGNAL_SECONDS", 0.05)
    with StopFlag() as flag:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        assert flag.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_closers_run_however_the_block_ends():
    closed = []
    flag = StopFlag()
    flag.at_exit(lambda: closed.append("bar"))
    with pytest.raises(ValueError), flag:
        raise ValueError
    assert closed == ["bar"]


def test_in_another_thread_the_flag_only_holds():
    seen = []

    def work():
        with StopFlag() as flag:
            flag.set()
            seen.append(flag.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
