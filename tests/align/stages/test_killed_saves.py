"""A stage killed with SIGKILL in the middle of a save, leaves nothing once it has run again."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import safetensors.torch

from align.runtime.files import sweep
from align.stages.chain import run_stage
from tests.align.stages.small_chain import small_recipe, write_data
from tests.ranks import exit_codes


def dies_in_a_save(folder, count):
    """The stage in a process that is killed in the middle of its `count`-th file of a head's weights: transformers
    keeps the function as it is, reward.headed looks it up when it saves a head."""
    real, calls = safetensors.torch.save_file, iter(range(1, 99))

    def fatal(tensors, path, *args, **kwargs):
        if next(calls) == count:
            Path(path).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        real(tensors, path, *args, **kwargs)

    safetensors.torch.save_file = fatal
    run_stage(small_recipe(folder, pmp__save_steps=1), "pmp")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_data(folder)
    run_stage(small_recipe(folder, base__max_steps=1), "base")
    return folder


def hidden(run):
    return [path for path in run.rglob(".*") if path.name != ".locks" and ".locks" not in path.parts]


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 5])  # a draft, three checkpoints, model
def test_a_reward_model_killed_while_it_is_written_leaves_no_copy(base, tmp_path, count):
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    codes, printed = exit_codes(1, dies_in_a_save, tmp_path, count)
    assert codes == [-signal.SIGKILL], printed
    left = hidden(tmp_path / "run")
    assert len(left) == 1 and ".tmp-" in left[0].name, left  # one name, nothing nested beside it
    done = run_stage(small_recipe(tmp_path, pmp__save_steps=1), "pmp")
    assert done["resumed_from"] == {3: 1, 5: 3}[count] and done["steps"] == 3
    assert hidden(tmp_path / "run") == []


def test_what_killed_writers_left_goes_and_what_is_the_users_stays(tmp_path):
    left = ("checkpoints/.step-3.tmp-ranks/x", ".summary.json.tmp-7-0a1b2c3d", "rounds/1/.model.tmp-9-0a1b2c3d/x")
    mine = ("notes.tmp", ".hidden", ".cache/x", "model/x", ".tmp/x")
    for name in (*left, *mine, ".model2.old-0a1b2c3d/weights"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    sweep(tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {*mine, "model2/weights"}  # put back: a kill had caught it between two renames
