"""Rules judged in processes of their own: what a hostile reply costs, and what becomes of the processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from data_formats.records import Message
from reward import maths, workers
from reward.maths import MathEquality
from reward.protocol import RewardError, Sample
from reward.rules import RegexMatch

ROOT = Path(__file__).parents[2]
ENDLESS = r"(?:a|aa|a?b?a)+$"
BAD = "a" * 5000 + "c"


def samples(*completions, reference="72"):
    return [Sample((Message("user", "q"),), text, columns={"reference": reference}) for text in completions]


def pid(kind="regex"):
    RegexMatch("a").score(samples("a"))
    return workers.workers(kind)._workers[0].process.pid


def is_alive(number):
    return psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_hostile_replies_cost_bounded_time_and_no_other_reply_its_score(monkeypatch):
    monkeypatch.setattr(workers, "BUDGET", 0.4)
    monkeypatch.setattr(workers, "HURRY", 0.02)
    rule = RegexMatch(ENDLESS, match="full", seconds=0.2)
    began = time.monotonic()
    assert rule.score(samples("aa", *[BAD] * 40, "b", "aba")) == [1.0, *[0.0] * 41, 1.0]
    assert time.monotonic() - began < 40 * 0.2  # 2 (and a few more asked meanwhile) of 0.2 s, the others of 0.02 s


def answer(said, cpu):
    return {"said": said, "cpu": cpu}


def test_the_budget_is_kept_in_the_order_of_the_replies_whoever_is_asked_first():
    late = {"said": "late"}
    batch = workers._Batch([{}] * 6, 5.0)
    assert (batch.allowed, batch.hurry) == (2, 0.1)
    batch.answers = [answer(True, 4.0), late, answer(True, 0.2), late, answer(True, 0.2), answer(True, 0.05)]
    assert batch.verdicts() == [True, "late", True, "late", "late", True]


@pytest.mark.needs("math_verify")
def test_a_reply_that_breaks_the_judge_is_wrong(monkeypatch):
    monkeypatch.setattr(maths, "SECONDS", 0.3)
    nested = "$" + "(" * 20_000 + "1" + ")" * 20_000 + "$"
    assert MathEquality().score(samples(nested, "$9^{9^{9^{9}}}$", "so it is 72", "$10^{10^{10}}!$")) == [0, 0, 1, 0]


@pytest.mark.needs("math_verify")
def test_nothing_that_a_library_prints_is_seen(capfd, caplog):
    MathEquality().score(samples("\x1b[31m$\\frac{1}{$", "$\\sqrt{\\undefined{x}$", "$x=1,\\text{\x1b]52;c;eA==\x07}$"))
    assert capfd.readouterr() == ("", "") and caplog.messages == []


def test_what_a_reply_holds_is_text():
    odd = ("\ud800", '"}\n{"said": true}', "\n\n", "\x00", "猫")
    assert RegexMatch("^(\ud800|猫|\x00)$").score(samples(*odd)) == [1, 0, 0, 1, 1]


def test_a_process_that_is_killed_is_started_again_and_asked_again():
    first = pid()
    (child,) = psutil.Process(first).children()
    os.kill(child.pid, signal.SIGKILL)  # the one that judges
    wait_until(lambda: not is_alive(first))  # it is no verdict
    assert RegexMatch("a").score(samples("a", "b")) == [1, 0]
    second = pid()
    assert second != first
    os.kill(second, signal.SIGKILL)  # the one that starts it
    assert RegexMatch("a").score(samples("a", "b")) == [1, 0]


def test_one_killed_while_it_judges_is_no_verdict():
    rule, first, found = RegexMatch(ENDLESS, match="full", seconds=1.0), pid(), []
    thread = threading.Thread(target=lambda: found.extend(rule.score(samples(BAD))))
    thread.start()
    time.sleep(0.2)
    for process in (*psutil.Process(first).children(), psutil.Process(first)):
        process.kill()
    thread.join()
    assert found == [0.0] and pid() != first


def test_where_none_can_be_had_it_is_an_error(monkeypatch):
    monkeypatch.setattr(workers, "PROGRAM", ROOT / "reward" / "nothing.py")
    with pytest.raises(
        RewardError, match=r"^reward 'regex': the process that judges replies does not start \(it ended"
    ):
        workers.Workers("regex").judge([{}], 1.0, "regex")


def test_threads_may_ask_at_once():
    found = {}
    texts = [str(number) for number in range(40)]

    def work(number):
        found[number] = RegexMatch(f"^{number}$").score(samples(*texts))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [float(text == str(number)) for text in texts] for number in range(4)}


SCRIPT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
print("main", flush=True)
from data_formats.records import Message
from reward import workers
from reward.rules import RegexMatch
from reward.protocol import Sample
print(RegexMatch("a").score([Sample((Message("user", "q"),), text) for text in "ab"]), flush=True)
print(workers.workers("regex")._workers[0].process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_they_end_with_the_process_and_never_run_the_users_script(ends, tmp_path):
    """Nor a file of the working folder that bears the name of a module."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "reward.py").write_text("raise SystemExit('imported the wrong file')")
    (tmp_path / "resource.py").write_text("raise SystemExit('imported the wrong file')")
    words, pipes = [sys.executable, "-P", "script.py"], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, cwd=tmp_path, text=True, **pipes) as process:
        lines = [process.stdout.readline().strip() for _ in range(3)]
        worker = psutil.Process(int(lines[2]))
        (judge,) = worker.children()
        if ends == "killed":
            process.kill()
        else:
            process.stdin.close()
        process.wait(20)
    assert lines[:2] == ["main", "[1.0, 0.0]"]
    wait_until(lambda: not any(is_alive(one.pid) for one in (worker, judge)))
