"""One writer at a time, across processes."""

import subprocess
import sys

import pytest

from align.runtime.errors import StorageError
from align.runtime.lock import CHAIN, FolderInUseError, locked
from align.stages.chain import run_chain, run_stage
from tests.align.stages.small_chain import small_recipe, write_data
from tests.commands import INSTALLED

HOLD = """
import sys
from align.runtime.lock import locked
with locked(sys.argv[1], sys.argv[2:]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts a process that holds the locks it is told; gives it up, or is killed, at the end."""
    running = []

    def hold(folder, *names):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), *names],
            env=INSTALLED,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in running:
        process.kill()
        process.communicate()


def test_a_second_process_is_told_who_is_at_work(tmp_path, holder):
    process = holder(tmp_path, "sft")
    said = f"another process is running 'sft' in {tmp_path}: wait for it"
    with pytest.raises(FolderInUseError, match=said), locked(tmp_path, ["sft"]):
        pass
    with locked(tmp_path, ["pmp", CHAIN]):  # another stage may run beside it
        pass
    process.kill()
    process.communicate()
    with locked(tmp_path, ["sft"]):  # a lock ends with its process
        pass


def test_a_failure_gives_the_lock_back(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path, ["sft"]):
        raise ZeroDivisionError
    with locked(tmp_path, ["sft"]):
        pass


def test_only_the_first_rank_holds_it(tmp_path, holder, monkeypatch):
    holder(tmp_path, "sft")
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path, ["sft"]):
        pass


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"), locked(tmp_path / "file", ["sft"]):
        pass


def test_chain_and_stage_do_nothing_while_another_is_at_work(tmp_path, holder):
    write_data(tmp_path)
    recipe = small_recipe(tmp_path)
    process = holder(recipe.output_dir, CHAIN, "base")
    with pytest.raises(FolderInUseError, match="a chain"):
        run_chain(recipe)
    with pytest.raises(FolderInUseError, match="'base'"):
        run_stage(recipe, "base", fresh=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".locks"]
    process.communicate("")
    assert run_stage(recipe, "base")["steps"] == 6
