"""PPO killed with SIGKILL in the middle of anything and started again ends bit for bit where it would have ended.

Everything that has a state is switched on (see `kill_run.py`). Compared are every weight, every tensor and number of
the last checkpoint, and metrics.jsonl and samples.jsonl byte for byte, times aside. All processes have one thread.
"""

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.runs import checkpoint
from tests.align.trainers import kill_run
from tests.align.trainers.kill_run import FEW, ITERATIONS
from tests.ranks import exit_codes, on_ranks

TIMES = re.compile(rb'"(?:time|seconds/[^"]*|tokens_per_second[^"]*|memory/[^"]*)": [^,}]+(?:, )?')

# Place and how often an iteration comes through it; a kill may fall into the first or into the second iteration.
SAVING = {"in_line": 9, "before_saving": 1, "in_state_file": 1, "before_rename": 1, "before_pruning": 1}
OTHERS = {"collection": 21, "between_optimizers": 4, "between_groups": 4, "ptx": 12}


def run(folder: Path, order: str = "", *flags: str) -> int:
    """Exit status of the run in `folder`, started or continued in a process of its own."""
    (code,), _ = exit_codes(1, kill_run.run, folder, order, *flags)
    return code


def killed_at(folder: Path, place: str, count: int, *flags: str) -> None:
    """Start or continue the run in `folder` and see it die in its place."""
    before = len(lines(folder / "kills.jsonl"))
    assert run(folder, f"{place}:{count}", *flags) == -9, (place, count)
    kills = lines(folder / "kills.jsonl")
    assert len(kills) == before + 1 and kills[-1]["place"] == place


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


def lines(file: Path) -> list:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def assert_same(found, expected, where: str = "") -> None:
    """Equal types, keys, numbers and tensors, all the way down."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    else:
        assert found == expected, where


def assert_same_run(found: Path, expected: Path, iterations: int = ITERATIONS) -> None:
    """Both are at their end, and nothing but times tells them apart."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert TIMES.sub(b"", (found / name).read_bytes()) == TIMES.sub(b"", (expected / name).read_bytes()), name
    steps = [line["step"] for line in lines(found / "metrics.jsonl") if "score/mean" in line]
    assert steps == list(range(1, iterations + 1))
    assert_same_step(*(folder / "checkpoints" / f"step-{iterations}" for folder in (found, expected)))
    for part in ("model", "critic", "ema", "best/model"):
        assert_same_files(found / part, expected / part)


def assert_same_step(found: Path, expected: Path) -> None:
    for folder in (found, expected):
        checkpoint.verify(folder)
        assert {"policy", "critic", "ema", "ppo_state.pt", "trainer_state.json"} <= {e.name for e in folder.iterdir()}
    assert_same_files(found, expected)


def assert_same_files(found: Path, expected: Path) -> None:
    names = sorted(str(file.relative_to(expected)) for file in expected.rglob("*") if file.is_file())
    assert names == sorted(str(file.relative_to(found)) for file in found.rglob("*") if file.is_file())
    assert any(name.endswith(".safetensors") for name in names)
    for name in names:
        if name.endswith(".pt"):
            assert_same(*(torch.load(folder / name, weights_only=True) for folder in (found, expected)), name)
        elif name == "trainer_state.json":
            assert untimed(found / name) == untimed(expected / name)
        elif name != checkpoint.MANIFEST:  # which holds the sizes and sums of the others
            assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def untimed(file: Path) -> dict:
    state = json.loads(file.read_text())
    del state["best_model_checkpoint"]  # names the run's folder
    timed = ("time", "seconds/", "tokens_per_second", "memory/")
    state["log_history"] = [{k: v for k, v in line.items() if not k.startswith(timed)} for line in state["log_history"]]
    return state


def orders(seed: int) -> list[tuple[str, int]]:
    """Ten kills: two each in warm-up, collection, an optimizer step, between ptx micro-batches, and in saving."""
    rng = random.Random(seed)
    places = ["collection", "collection", "between_optimizers", "between_groups", "ptx", "ptx"]
    places += rng.sample(sorted(SAVING), 2)
    rng.shuffle(places)
    often = SAVING | OTHERS
    later = [(place, rng.randint(1, round(1.5 * often[place]))) for place in places]
    return [("warm_up", rng.randint(1, 8)), ("warm_up", rng.randint(1, 12)), *later]


@pytest.mark.slow
def test_ten_kills_leave_no_trace(tmp_path, whole):
    for place, count in orders(seed=0):
        killed_at(tmp_path, place, count)
    assert run(tmp_path) == 0
    kills = lines(tmp_path / "kills.jsonl")
    assert len(kills) == 10 and all(kill["optimizer_steps"] < 6 for kill in kills if kill["place"] == "warm_up")
    assert all(0 < kill["changed"] < kill["of"] for kill in kills if kill["place"] == "between_groups")
    assert_same_run(tmp_path, whole)
    with pytest.raises(AssertionError):  # the comparison tells two neighbouring steps apart
        assert_same_step(whole / "checkpoints" / f"step-{ITERATIONS - 1}", whole / "checkpoints" / f"step-{ITERATIONS}")


@pytest.mark.slow
def test_kills_at_every_point_of_saving_in_evaluation_and_after_the_last_step(tmp_path, whole):
    killed_at(tmp_path, "after_model", 1)
    assert lines(tmp_path / "kills.jsonl")[0]["name"] == "best"  # the look before training
    for place in SAVING:
        killed_at(tmp_path, place, SAVING[place])
    killed_at(tmp_path, "evaluation", 3)
    killed_at(tmp_path, "after_training", 1)
    killed_at(tmp_path, "after_model", 1)
    assert run(tmp_path) == 0
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["--lora", "--roles"])
def test_a_kill_in_the_middle_of_an_adapter_run(tmp_path, kind):
    assert run(tmp_path / "whole", "", kind, "--few") == 0
    storm = tmp_path / "storm"
    for place, count in {"collection": 30, "between_optimizers": 5, "in_state_file": 2}.items():
        killed_at(storm, place, count, kind, "--few")
    assert run(storm, "", kind, "--few") == 0
    assert_same_run(storm, tmp_path / "whole", FEW)
    assert (storm / "model/adapter_config.json").is_file()
    with pytest.raises((OSError, ValueError)):  # rather than a model with random weights
        AutoModelForCausalLM.from_pretrained(storm / "checkpoints" / f"step-{FEW}" / "policy")


@pytest.mark.slow
def test_kills_while_the_next_batch_is_sampled(tmp_path):
    flags = ("--overlap", "--few")
    assert run(tmp_path / "whole", "", *flags) == 0
    storm = tmp_path / "storm"
    for place, count in {"ahead": 30, "between_optimizers": 5, "in_state_file": 2}.items():
        killed_at(storm, place, count, *flags)
    assert run(storm, "", *flags) == 0
    assert_same_run(storm, tmp_path / "whole", FEW)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    killed_at(folder, "collection", 6 * OTHERS["collection"])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"),
    [("critic/model.safetensors", "missing"), ("ppo_state.pt", "cut")],
)
def test_a_torn_checkpoint_costs_one_step_and_nothing_else(tmp_path, whole, killed, name, damage):
    folder = shutil.copytree(killed, tmp_path / "run")
    newest = checkpoint.latest(folder / "checkpoints")
    torn = newest / name
    if damage == "cut":
        os.truncate(torn, torn.stat().st_size // 2)
    else:
        torn.unlink()
    assert run(folder) == 0
    assert lines(folder / "starts.jsonl") == [None, checkpoint.step_of(newest) - 1]
    assert_same_run(folder, whole)


@pytest.mark.slow
def test_two_ranks_of_which_one_is_killed(tmp_path):
    on_ranks(2, kill_run.run, tmp_path / "whole", "", "--few")
    storm = tmp_path / "storm"
    kills = ("between_optimizers:3@0", "ptx:9@1")
    for order in kills:
        assert -9 in exit_codes(2, kill_run.run, storm, order, "--few")[0]
        assert lines(storm / "kills.jsonl")[-1]["place"] == order.partition(":")[0]
    assert len(lines(storm / "kills.jsonl")) == len(kills)
    on_ranks(2, kill_run.run, storm, "", "--few")
    assert_same_run(storm, tmp_path / "whole", FEW)
