"""Checkpoints are whole or not there."""

import logging
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from torch import distributed

from align.runs import checkpoint
from align.runs.errors import CheckpointError
from align.runtime.errors import MissingFileError, StorageError
from tests.ranks import on_ranks

# Saves step after step; each holds its number in three files, one of them in a folder of its own.
SAVER = """
import os, shutil, signal, sys, time
from pathlib import Path
from align.runs import checkpoint
root, pause, fatal = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
calls = 0
def counted(function):
    def wrapper(*args, **kwargs):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper
if fatal:
    for module, name in [(os, "rename"), (os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "rmdir"), (os, "unlink")]:
        setattr(module, name, counted(getattr(module, name)))
def write(step):
    def inner(folder):
        for name in ("a", "b", "deep/c"):
            (folder / name).parent.mkdir(exist_ok=True)
            with open(folder / name, "w") as file:
                for _ in range(10):
                    file.write(f"{step} " * 100)
                    file.flush()
                    time.sleep(pause)
        print("written", step, flush=True)
    return inner
for step in range(1, 1 + int(sys.argv[4])):
    print("saving", step, flush=True)
    checkpoint.save(root, step, write(step), keep=1)
print("done", flush=True)
"""


def start(root, pause=0.0, fatal=0, steps=2):
    command = [sys.executable, "-c", SAVER, str(root), str(pause), str(fatal), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})


def content(path):
    checkpoint.verify(path)
    texts = {(path / name).read_text() for name in ("a", "b", "deep/c")}
    assert len(texts) == 1
    return int(texts.pop().split()[0])


def put(text):
    return lambda folder: (folder / "state").write_text(text)


def test_save_latest_and_keep(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    for step in (5, 10, 15):
        assert checkpoint.save(tmp_path, step, put(str(step)), keep=2) == tmp_path / f"step-{step}"
    assert sorted(os.listdir(tmp_path)) == ["step-10", "step-15"]
    assert checkpoint.latest(tmp_path) == tmp_path / "step-15"
    assert checkpoint.steps(tmp_path) == [10, 15] and checkpoint.step_of(tmp_path / "step-15") == 15
    checkpoint.save(tmp_path, 15, put("again"), keep=1)
    assert (tmp_path / "step-15" / "state").read_text() == "again"
    assert os.listdir(tmp_path) == ["step-15"]


def test_steps_of_an_abandoned_future_are_removed(tmp_path):
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, step, put(str(step)), keep=4)  # more than there are: none goes
    assert checkpoint.keep_newest(tmp_path, 4) == 0 and checkpoint.steps(tmp_path) == [5, 10, 15]
    checkpoint.save(tmp_path, 12, put("12"), keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-10", "step-12"]


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "manifest"])
def test_a_torn_step_is_found_named_and_passed_over(tmp_path, caplog, damage):
    checkpoint.save(tmp_path, 1, put("good"))
    newest = checkpoint.save(tmp_path, 2, put("second"))
    state = newest / "state"
    if damage == "cut":
        state.write_text("sec")
    elif damage == "changed":
        state.write_text("sEcond")
    elif damage == "missing":
        state.unlink()
    else:
        (newest / "manifest.json").write_text('{"files": {"sta')
    with pytest.raises(CheckpointError, match="manifest" if damage == "manifest" else "step-2/state"):
        checkpoint.verify(newest)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.latest(tmp_path) == tmp_path / "step-1"
    assert "step-2" in caplog.text


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="step-9"):
        checkpoint.verify(tmp_path / "step-9")
    with pytest.raises(CheckpointError, match="must be step-N"):
        checkpoint.step_of(tmp_path / "model")


def test_an_error_while_writing_keeps_the_step_before(tmp_path):
    checkpoint.save(tmp_path, 1, put("good"))

    def broken(folder):
        (folder / "state").write_text("half")
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        checkpoint.save(tmp_path, 2, broken)
    assert os.listdir(tmp_path) == ["step-1"]


def test_kill_in_the_middle_of_a_slow_write_leaves_the_old_step(tmp_path):
    process = start(tmp_path, pause=0.02)
    for line in process.stdout:
        if line.split() == ["saving", "2"]:
            break
    time.sleep(0.2)  # a write takes 0.6 s
    assert (tmp_path / ".step-2.tmp-ranks" / "a").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-1" and content(tmp_path / "step-1") == 1
    checkpoint.save(tmp_path, 2, put("new"))
    assert sorted(os.listdir(tmp_path)) == ["step-1", "step-2"]


@pytest.mark.slow
def test_kill_before_any_change_of_the_disk_leaves_the_old_or_the_new_step(tmp_path):
    """Kills the saver at its first, second, third … call that changes the disk, until one run gets through."""
    found = []
    for fatal in range(1, 100):
        root = tmp_path / str(fatal)
        root.mkdir()
        process = start(root, fatal=fatal)
        output = process.communicate()[0].split("\n")
        latest = checkpoint.latest(root)
        found.append(content(latest) if latest else 0)
        if "done" in output:
            assert process.returncode == 0
            break
        assert process.returncode == -signal.SIGKILL
        assert found[-1] >= 1 or "saving 2" not in output
    assert found == sorted(found) and set(found) == {0, 1, 2}
    assert len(found) > 15


@pytest.mark.slow
def test_kill_storm(tmp_path):
    generator = random.Random(0)
    newest = 0
    for _ in range(25):
        process = start(tmp_path, pause=0.001, steps=1000)
        process.stdout.readline()  # it has begun, however long that took
        time.sleep(generator.random() * 0.3)
        process.kill()
        process.communicate()
        latest = checkpoint.latest(tmp_path)
        if latest is not None:
            assert content(latest) == checkpoint.step_of(latest)
            newest = max(newest, checkpoint.step_of(latest))
    assert newest > 1


def test_full_disk_keeps_the_step_before(tmp_path):
    code = """
import resource, sys
from align.runs import checkpoint
from align.runtime.errors import StorageError
checkpoint.save(sys.argv[1], 1, lambda folder: (folder / "state").write_text("good"))
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    checkpoint.save(sys.argv[1], 2, lambda folder: (folder / "state").write_bytes(b"x" * 100_000))
except StorageError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert f"cannot write {tmp_path}/step-2: File too large" in output.stdout
    assert os.listdir(tmp_path) == ["step-1"] and checkpoint.latest(tmp_path) == tmp_path / "step-1"


def write_on_ranks(root):
    """The second rank cannot write the second step."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()

    def write(folder):
        (folder / f"rank{rank}").write_text("x")
        if folder.name.startswith(".step-2.") and rank == 1:
            raise OSError(28, "No space left on device")

    assert checkpoint.save(root / "run", 1, write) == root / "run/step-1"
    with pytest.raises(StorageError) as caught:
        checkpoint.save(root / "run", 2, write)
    (root / f"told-{rank}").write_text(str(caught.value))


@pytest.mark.slow
def test_all_ranks_write_and_fail_together(tmp_path):
    on_ranks(2, write_on_ranks, tmp_path)
    assert sorted(os.listdir(tmp_path / "run/step-1")) == ["manifest.json", "rank0", "rank1"]
    told = [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)]
    assert "step-2: another rank failed" in told[0] and "step-2: No space left" in told[1]
    assert os.listdir(tmp_path / "run") == ["step-1"]
