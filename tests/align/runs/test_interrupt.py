"""Ctrl-C and a scheduler's signals, with real signals."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from align.runs import interrupt
from align.runs.interrupt import INTERRUPTED, REQUEUE, StopFlag, Stopped
from tests.commands import INSTALLED, exit_code

# A program that is told to stop before it trains, while it trains, and after it has ended otherwise, by a child of its
# own too, which must die of the signal as it would elsewhere.
PROGRAM = """
import os, signal, sys, time
from align.runs.interrupt import StopFlag, Stopped
from align.runs.launch import guarded
from align.runtime.errors import AlignError

when, number = sys.argv[1], getattr(signal, sys.argv[2])
with guarded(proceed="align run r.yaml") as ending:
    if when == "child":
        heard, up = os.pipe()
        child = os.fork()
        if not child:
            os.write(up, b"1")
            time.sleep(30)
            os._exit(0)
        os.read(heard, 1)
        os.kill(child, number)
        ending.code = os.WTERMSIG(os.waitpid(child, 0)[1])
    elif when == "before":
        os.kill(os.getpid(), number)
        time.sleep(30)
    elif when == "training":
        with StopFlag() as flag:
            os.kill(os.getpid(), number)
            code = flag.code()
        raise Stopped("stage 'sft' stopped at step 3", code)
    else:
        import align.runs.launch as launch
        failed = launch._failed
        launch._failed = lambda *args: (os.kill(os.getpid(), number), failed(*args))[1]
        raise AlignError("odd")
sys.exit(ending.code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_sets_the_flag_and_the_handler_goes_back(number):
    before = signal.getsignal(number)
    with StopFlag() as flag:
        assert not flag.is_set() and flag.code() is None
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert flag.is_set()
        os.kill(os.getpid(), number)  # passed on by a launcher: the same one
        time.sleep(0.01)
        assert flag.code() == (INTERRUPTED if number == signal.SIGINT else REQUEUE)
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once_and_a_schedulers_does_not(monkeypatch):
    monkeypatch.setattr(interrupt, "_SAME_SIGNAL_SECONDS", 0.05)
    with StopFlag() as flag:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)  # at the limit, while what the first one began is still saved
        time.sleep(0.1)
        assert flag.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


@pytest.mark.parametrize(("code", "ends"), [(None, 130), (INTERRUPTED, 130), (REQUEUE, 75)])
def test_the_exit_code_says_who_asked(code, ends):
    def stop():
        raise Stopped("stage 'sft' stopped at step 3", *(() if code is None else (code,)))

    assert exit_code(stop) == ends


@pytest.mark.parametrize(
    ("when", "name", "code", "said"),
    [
        (
            "before",
            "SIGUSR1",
            75,
            "\nasked to stop by SIGUSR1; what is finished or saved is kept. Continue with: align run",
        ),
        (
            "training",
            "SIGTERM",
            75,
            "\nstage 'sft' stopped at step 3; what is finished or saved is kept. Continue with",
        ),
        ("after", "SIGTERM", 1, "error: odd\n"),
        ("child", "SIGTERM", 15, ""),
    ],
)
def test_a_programs_end(when, name, code, said):
    command = [sys.executable, "-c", PROGRAM, when, name]
    done = subprocess.run(command, env=INSTALLED, capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


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
