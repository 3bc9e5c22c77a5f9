"""A chain that is stopped from outside, at any moment, and started again with the same command."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from align import cli
from tests.commands import INSTALLED, ROOT, heed_ctrl_c
from tests.ranks import PROCESSES
from tests.recipes.miniature import arguments

STAGES = ("sft", "pmp", "rm", "ppo")
WEIGHTS = [f"{stage}/model/model.safetensors" for stage in STAGES] + [
    "rm/model/head.safetensors",
    "ppo/critic/model.safetensors",
]


def start(words):
    command = [sys.executable, "-m", "align.cli", "run", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=INSTALLED, preexec_fn=heed_ctrl_c, **pipes)


def in_process(words, log) -> None:
    """The same in a process that has imported everything already, with one thread."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    os._exit(cli.main(["run", *words]))


def begun(words, log):
    process = PROCESSES.Process(target=in_process, args=(words, log))
    process.start()
    return process


def whole(run) -> None:
    """Whatever stands under its own name can be read to the end."""
    for file in run.rglob("*.json"):
        json.loads(file.read_text(encoding="utf-8"))
    for file in run.glob("*/summary.json"):
        assert (file.parent / "model/model.safetensors").is_file(), "the summary is the last file of a stage"


def named(run) -> set[str]:
    """The files that stand under their own names (os.walk bears with folders that are renamed meanwhile)."""
    found = (Path(folder) / name for folder, _, names in os.walk(run) for name in names)
    return {str(path) for path in found if "/." not in str(path.relative_to(run.parent))}


def wait_for(condition, process, seconds=120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_the_chain(tmp_path):
    words = ["qwen_rlhf", *arguments(tmp_path), "pmp.max_steps=120"]
    run = tmp_path / "run"
    process = start(words)
    metrics = run / "pmp" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 10, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    last = err.strip().splitlines()[-1]
    assert last.startswith("stage 'pmp' stopped at step ")
    assert last.endswith("what is finished or saved is kept. Continue with: " + shlex.join(["align", "run", *words]))
    whole(run)
    assert not (run / "pmp/summary.json").exists() and not (run / "rm").exists()

    again = begun(shlex.split(last.partition("Continue with: align run ")[2]), tmp_path / "log")
    again.join(240)
    said = (tmp_path / "log").read_text()
    assert again.exitcode == 0, said
    assert "sft: finished before" in said and "pmp: finished before" not in said
    stopped = int(last.removeprefix("stage 'pmp' stopped at step ").split(";")[0])
    pmp = json.loads((run / "pmp/summary.json").read_text())
    assert pmp["steps"] == 120 and 10 <= pmp["resumed_from"] == stopped < 120
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if "loss" in json.loads(line)]
    assert [step for step in steps if step] == sorted(set(steps))
    whole(run)


@pytest.mark.slow
def test_a_storm_of_kills_ends_with_the_same_weights(tmp_path):
    """Killed again and again without warning, the chain ends as if nothing had happened, bit for bit."""
    for name in ("calm", "storm"):
        (tmp_path / name).mkdir()
    log, run, rng, kills = tmp_path / "log", tmp_path / "storm/run", random.Random(0), 0
    told = {name: ["qwen_rlhf", *arguments(tmp_path / name)] for name in ("calm", "storm")}
    calm = begun(told["calm"], log)
    calm.join(240)
    assert calm.exitcode == 0, log.read_text()
    for _ in range(40):
        before, process = named(run), begun(told["storm"], log)
        while process.is_alive() and named(run) <= before:  # every round gets at least one file further
            time.sleep(0.01)
        process.join(rng.uniform(0, 3))
        if not process.is_alive():
            assert process.exitcode == 0, log.read_text()
            break
        process.kill()
        process.join()
        kills += 1
        whole(run)
    assert (run / "summary.json").is_file() and kills >= 2
    for file in WEIGHTS:
        assert (run / file).read_bytes() == (tmp_path / "calm/run" / file).read_bytes(), file
    hidden = [path for path in run.rglob("*") if ".tmp" in path.name and path.name.startswith(".")]
    assert len(hidden) <= kills
