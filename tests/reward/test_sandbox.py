"""The sandbox under attack: what a hostile reply does is held, whatever it says; and what becomes of its processes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from data_formats.records import Message
from examples.experiments import sandbox_attacks
from reward.protocol import RewardUnavailableError, Sample
from reward.sandbox import start
from reward.sandbox.start import Budget
from reward.unit_tests import UnitTests
from tests.sandboxes import BUDGET, require

ROOT = Path(__file__).parents[2]
ATTACKS = {one.name: one for one in sandbox_attacks.attacks()}
CHEAP = (  # those that need no time; the slow test has them all
    *("Writes a file outside", "Reads a file of the user's", "Reads the environment", "Reads the parent's environment"),
    *("Signals the training's process", "Connects to a port (TCP)", "Makes itself root"),
    *("Leaves a daemon behind (double fork, setsid)", "Looks for the tests (gc, frames, /proc/self)"),
    *("Prints a success and exits with 0", "Value that is equal to everything", "Writes a verdict to every descriptor"),
    *("Tells the judge that it passed, while loading", "Tells the judge that it passed, in the test"),
    *("Tells the judge that the tests are broken", "A module of Python's as its own"),
    *("Memory beside the limit (System V)", "Memory beside the limit (memfd)"),
    *("Asks for the keys of the session", "Sets up io_uring", "Memory of many processes together"),
)


def sample(code, *tests):
    return Sample((Message("user", "q"),), code, columns={"tests": list(tests) or ["assert f(1) == 1"]})


def is_alive(number):
    return psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def readable_by_others(monkeypatch):
    """Without namespaces root's own Python may be another user's to read or not; the system's is."""
    if os.geteuid() == 0:
        monkeypatch.setattr(start, "PYTHON", "/usr/bin/python3")
        monkeypatch.setattr(start, "KEEPERS", start._Keepers())


def worked(attack, walls=()):
    with sandbox_attacks.attacked() as place:
        return sandbox_attacks.tried(attack, place, walls)[0]


def test_the_attacks_are_attacks():
    """Without a sandbox they work, so that one which is held says something."""
    with sandbox_attacks.attacked() as place:
        for name in ("Writes a file outside", "Reads a file of the user's", "Reads the environment"):
            names = {}
            exec(place.fill(ATTACKS[name].code), names)
            assert not ATTACKS[name].test or eval(ATTACKS[name].test, names)
        assert place.written() and not place.signalled() and not place.connected() and not place.reached()
        exec(place.fill(ATTACKS["Signals the training's process"].code), {})
        exec(place.fill(ATTACKS["Sends a packet (UDP)"].code), {})
        exec(place.fill(ATTACKS["Connects to a port (TCP)"].code), {})
        assert place.signalled() and place.connected() and place.reached()
    assert len(ATTACKS) == 47 and all(one.test or one.seen for one in ATTACKS.values())


def test_hostile_replies_are_held():
    require("required")
    assert [name for name in CHEAP if worked(ATTACKS[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("around", sandbox_attacks.WALLS)
def test_every_attack(around, monkeypatch):
    """With less patience for those that sleep or burn what they have."""
    monkeypatch.setattr(start, "PATIENCE", 4)
    monkeypatch.setitem(sandbox_attacks.LIMITS, "reply_seconds", 8)
    walls = sandbox_attacks.WALLS[around]
    if walls:
        readable_by_others(monkeypatch)
    require("best" if walls else "required")
    outside = {name for name, attack in ATTACKS.items() if worked(attack, walls)}
    assert outside <= sandbox_attacks.KNOWN[around]


def test_what_processes_use_together_is_seen():
    """Of this script's: two children that hold 60 MiB each, one in shared memory, one of them without its first thread;
    a grandchild that was waited for, and a child that nobody waited for."""
    if sys.platform != "linux":
        return
    words = [sys.executable, "-c", LOOKS, str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "all processes together held more than 100 MiB",
        "",
        "",
        "all processes together used more than 0.4 s of CPU",
        "all processes together used more than 0.4 s of CPU",
    ], done.stderr


LOOKS = """
import _thread, ctypes, mmap, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from reward.sandbox import together
from reward.sandbox.together import Together
read, write = os.pipe()
def started(work):
    child = os.fork()
    if child == 0:
        work()
        os.write(write, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    return child
def hold():
    global held
    held = b"x" * (60 << 20)
def hold_shared():
    global held
    held = mmap.mmap(-1, 60 << 20)
    held.write(bytes(60 << 20))
    def last():
        time.sleep(0.1)
        os.write(write, b"x")
        time.sleep(60)
    _thread.start_new_thread(last, ())
    ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
def burn():
    while sum(os.times()[:2]) < 0.5:
        pass
def burn_below():
    if os.fork() == 0:
        burn()
        os._exit(0)
    os.wait()
children = [started(hold), started(hold_shared)]
print(Together(100 << 20, 99).over(without=0)[1])
print(Together(100 << 20, 99).over(without=children[0])[1])
print(Together(200 << 20, 99).over(without=0)[1])
together.LISTED = False  # a kernel that keeps no list of children
children.append(started(burn_below))
print(Together(200 << 20, 0.4).over(without=0)[1])
os.kill(children.pop(), signal.SIGKILL)
os.wait()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
looks = Together(200 << 20, 0.4)
child = started(burn)
looks.over(without=0)
os.kill(child, signal.SIGKILL)
while os.path.exists(f"/proc/{child}"):
    time.sleep(0.01)
print(looks.over(without=0)[1])
for child in children:
    os.kill(child, signal.SIGKILL)
"""


def test_what_a_test_copies_of_its_program_is_no_attack():
    """The program's memory is there twice where a test writes to all of it, and a copy for each of its processes."""
    require()
    code = "import os, time\nheld = [bytearray(b'x' * (1 << 20)) for _ in range(100)]\ndef f(x):\n"
    code += "    for one in held:\n        one[::4096] = b'y' * 256\n    time.sleep(0.2)\n    return x"
    assert UnitTests(budget=Budget(**BUDGET, memory_mib=180)).score([sample(code)]) == [1.0]


def test_what_is_around_the_code_is_said_once(caplog):
    require("required")
    start._told.cache_clear()
    caplog.set_level("INFO", logger="reward.sandbox.start")
    UnitTests().score([sample("f = lambda x: 1")] * 2)
    assert [line.message.startswith("code of replies runs behind namespaces") for line in caplog.records] == [True]


def test_isolation_that_is_required_is_not_done_without(monkeypatch):
    require("required")
    with pytest.raises(RewardUnavailableError, match=r"only with less around it \(.+\).* or say isolation: best"):
        UnitTests(budget=Budget(without=("namespaces",))).score([sample("f = lambda x: 1")])
    monkeypatch.setattr(start, "PYTHON", "/bin/false")
    monkeypatch.setattr(start, "KEEPERS", start._Keepers())
    with pytest.raises(RewardUnavailableError, match="the sandbox broke off 3 times"):
        UnitTests().score([sample("f = lambda x: 1")])


def test_a_keeper_that_is_killed_is_no_verdict():
    require()
    rule = UnitTests(budget=Budget(**BUDGET))
    assert rule.score([sample("f = lambda x: 1")]) == [1.0]
    here = psutil.Process().children()
    keepers = [one for one in here if "reward.sandbox.keeper" in " ".join(one.cmdline())]
    for one in keepers:
        one.kill()
    assert keepers and rule.score([sample("f = lambda x: 1"), sample("f = lambda x: 2")]) == [1.0, 0.0]


def test_threads_may_ask_at_once():
    require()
    rule, found = UnitTests(budget=Budget(**BUDGET, workers=2)), {}

    def work(number):
        found[number] = rule.score([sample(f"f = lambda x: {value}") for value in (number, 1)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [float(number == 1), 1.0] for number in range(3)}


def test_a_user_who_is_not_root_has_namespaces():
    """Most trainings are started by one: the files that make a namespace, and those that say whom the kernel ends first
    where memory runs out, must be theirs to write."""
    require("required")
    if os.geteuid():
        return  # all the others show it
    words = ["/usr/bin/python3", "-B", "-c", PLAIN]
    done = subprocess.run(words, user=65534, group=65534, extra_groups=[], cwd="/", capture_output=True, text=True)
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip("another user cannot read this folder")
    assert done.stdout == "[1.0] [1.0]\n", done.stderr


PLAIN = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from data_formats.records import Message
from reward.protocol import Sample
from reward.sandbox.start import Budget
from reward.unit_tests import UnitTests
one = Sample((Message("user", "q"),), "f = lambda x: 1", columns={{"tests": ["assert f(1) == 1"]}})
code = "f = lambda x: int(open('/proc/self/oom_score_adj').read()) == 1000"
first = Sample(one.prompt, code, columns={{"tests": ["assert f(1) is True"]}})
alone = UnitTests(budget=Budget(isolation="best", without=("namespaces", "landlock")))
print(UnitTests().score([one]), alone.score([first]))
"""


SCRIPT = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
sys.path.insert(0, {str(ROOT)!r})
from data_formats.records import Message
from reward.protocol import Sample
from reward.sandbox.start import Budget
from reward.unit_tests import UnitTests
code = "import ctypes\\nctypes.CDLL(None).prctl(15, b'evil-reply', 0, 0, 0)\\nimport time\\ntime.sleep(60)"
print("begins", flush=True)
asleep = Sample((Message("user", "q"),), code, columns={{"tests": ["f()"]}})
UnitTests(budget=Budget(isolation="best", seconds=10)).score([asleep])
"""


@pytest.mark.parametrize("word", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_nothing_is_left_where_the_training_ends(tmp_path, word):
    """At once, not when the reply's time is over."""
    require()
    (tmp_path / "reward.py").write_text("raise SystemExit('imported the wrong file')")
    with subprocess.Popen([sys.executable, "-P", "-c", SCRIPT], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        wait_until(sandbox_attacks.marked)
        left = [one.pid for one in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(word)
        assert process.wait(30) != 0
    wait_until(lambda: not sandbox_attacks.marked() and not any(is_alive(number) for number in left))


def test_nothing_is_left_of_folders_too_deep_to_walk(monkeypatch):
    readable_by_others(monkeypatch)
    require()
    before = set(os.listdir(tempfile.gettempdir()))
    code = "import os\nfor n in range(1500):\n    os.mkdir('d')\n    os.chdir('d')\nos.mkdir('e', 0)\nf = lambda x: 1"
    budget = Budget(isolation="best", without=("namespaces",))
    assert UnitTests(budget=budget).score([sample(code)]) == [1.0]
    left = set(os.listdir(tempfile.gettempdir())) - before
    assert not [name for name in left if name.startswith("align-reply-")]


def test_tests_that_turn_their_own_cage_are_broken_ones():
    """Tests come with data: what they make their judge tell is no exception of the training's."""
    require()
    tell = "f\nimport contextlib, os\nfor n in range(3, 64):\n    with contextlib.suppress(OSError):\n"
    tell += "        os.write(n, {!r})\nos._exit(0)"
    for told in (b"[" * 99999, b"[[3], 1]", b"[[], null]", b"7", b'[["no", "such", "pair"], 1]'):
        (result,) = UnitTests(budget=Budget(**BUDGET)).results([sample("f = 1", tell.format(told))])
        assert (result.passed, result.reason) in ((0, "broken_test"), (0, "crash")), told


def test_namespaces_are_not_done_without_for_one_failure(monkeypatch):
    require("required")
    found, asked = [{"error": "ENOMEM"}, {"outcomes": [[["passed", ""]], 1], "walls": ["namespaces"]}], []
    monkeypatch.setattr(start, "KEEPERS", start._Keepers())
    monkeypatch.setattr(
        start, "_asked", lambda objects, *_: asked.append(objects[0]["without"]) or found[len(asked) - 1]
    )
    start.KEEPERS.apart = True
    assert UnitTests(budget=Budget(isolation="best")).score([sample("f = 1")]) == [1.0] and asked == [[], []]


def test_the_keeper_reads_no_test_before_the_code_is_there():
    """What the reply's side was forked from has not seen the tests: they come behind the program, and are not read with
    it."""
    require("required")
    ours = start.KEEPERS.new()
    asked = {"code": "x = 1", "prefix": "", "entry_point": "", "run": False, "without": []}
    asked |= {"output": 1, "limits": {"cpu": 1, "memory": 1 << 28, "file": 1, "folder": 1 << 20, "processes": 1}}
    data = json.dumps(asked).encode()
    with ours:
        ours.sendall(b"%d\n%s" % (len(data), data))
        wait_until(lambda: any(len(one.children()) == 1 for one in psutil.Process().children()))
        ours.settimeout(0.3)
        with pytest.raises(TimeoutError):  # it waits for them, with the reply's process there
            ours.recv(1)
