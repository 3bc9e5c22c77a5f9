"""accelerate's configs as accelerate reads them, and a launcher that schedulers can use."""

import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import CPUOffloadPolicy

from align.runs import launcher
from align.runs.errors import LaunchError
from align.runs.launcher import accelerate_configs, exit_code, refuse_settings_of_two_owners
from align.runtime.errors import MissingFileError
from align.trainers.sharding import fsdp_plugin
from tests.commands import INSTALLED, ROOT

CONFIGS = accelerate_configs()
NODE = ["--machine_rank", "1", "--main_process_ip", "node1"]
RANK = """
import os, sys, time
from align.runs.launch import guarded
with guarded(proceed="again") as ending:
    print("rank", os.environ.get("RANK", "0"), "is up", flush=True)
    if sys.argv[1:] == ["fail"] and os.environ.get("RANK") == "1":
        os.kill(os.getpid(), 9)
    time.sleep(120)
sys.exit(ending.code)
"""


def environment(name: str, *words: str) -> dict[str, str]:
    """What a rank is given when `name` is launched on eight cards a node: accelerate's own parser and environment."""
    args = launch_command_parser().parse_args(["--config_file", name, *words, "train.py"])
    launcher._complete(args)
    args, _, _ = _validate_launch_command(args)
    given = prepare_multi_gpu_env(args)
    return given | {"nproc": args.nproc_per_node, "nodes": str(args.num_machines), "fsdp": str(args.use_fsdp)}


@pytest.fixture
def eight_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)


def test_the_files_are_those_of_the_manual():
    assert set(CONFIGS) == {"one_card", "ddp", "fsdp2", "fsdp2_offload", "nodes"}
    for name, file in CONFIGS.items():
        text = file.read_text(encoding="utf-8")
        assert re.search(rf"^# align launch --config_file {name} ", text, re.M), "its command"
        config = load_config_from_file(str(file))
        assert config.mixed_precision is None, "the recipe's"
        assert not config.fsdp_config.get("fsdp_activation_checkpointing"), "the recipe's"


def test_one_card_is_one_process_without_a_launcher_of_ranks():
    args = launch_command_parser().parse_args(["--config_file", "one_card", "train.py"])
    launcher._complete(args)
    args, _, _ = _validate_launch_command(args)
    assert (args.num_processes, args.multi_gpu, args.use_fsdp, args.mixed_precision) == (1, False, False, "no")


def test_ddp_is_a_process_on_every_card(eight_cards):
    given = environment("ddp")
    assert (given["nproc"], given["fsdp"], given["ACCELERATE_MIXED_PRECISION"]) == ("8", "False", "no")
    assert environment("ddp", "--num_processes", "2")["nproc"] == "2"
    assert environment("ddp", "--num_machines", "2", *NODE, "--main_process_port", "29501")["nproc"] == "8"


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_offload", "nodes"])
def test_fsdp2_is_what_our_trainers_read(monkeypatch, eight_cards, name):
    given = environment(name, *(NODE if name == "nodes" else []))
    assert (given["nproc"], given["nodes"]) == ("8", "2" if name == "nodes" else "1")
    for key, value in given.items():
        if key.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(key, value)
    plugin = fsdp_plugin("bf16")
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.transformer_cls_names_to_wrap is None, "the layers of each model"
    assert "FULL" in str(plugin.state_dict_type)
    assert not plugin.activation_checkpointing and not plugin.cpu_ram_efficient_loading
    assert isinstance(plugin.cpu_offload, CPUOffloadPolicy) == (name == "fsdp2_offload")
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16
    refuse_settings_of_two_owners(SimpleNamespace(mixed_precision="bf16"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "model.mixed_precision is no: the recipe decides"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "model.gradient_checkpointing"),
    ],
)
def test_what_is_the_recipes_is_not_the_launchers(monkeypatch, given, said):
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(LaunchError, match=said):
        refuse_settings_of_two_owners(SimpleNamespace(mixed_precision="no"))


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--config_file", "fsdp"], MissingFileError, "did you mean 'fsdp2'"),
        (["--config_file", "nodes"], LaunchError, "2 nodes needs --machine_rank, 0 on the first and --main_process_ip"),
        (["--config_file", "nodes", "--machine_rank", "0"], LaunchError, "needs --main_process_ip"),
        (["--config_file", "ddp"], LaunchError, "no card to start a process for; say how many with --num_processes"),
        (["--config_file", str(ROOT / "recipes/quickstart.yaml")], LaunchError, "not a config file of accelerate"),
    ],
)
def test_what_cannot_be_launched(monkeypatch, words, error, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(error, match=said):
        launcher.launch([*words, "train.py"])


@pytest.mark.parametrize(
    ("ended", "passed", "code"),
    [
        ({0: 75, 1: 1}, {signal.SIGUSR1}, 75),  # the second lost the first
        ({1: -signal.SIGUSR1}, {signal.SIGUSR1}, 75),  # while Python started
        ({1: -signal.SIGINT, 0: 130}, {signal.SIGINT}, 130),
        ({1: -signal.SIGTERM, 0: 1}, set(), 143),  # not by us
        ({3: -signal.SIGKILL}, {signal.SIGTERM}, 137),
        ({0: 2}, set(), 2),
        ({0: 75, 1: -signal.SIGKILL}, set(), 137),  # torchrun ended the first
        ({0: 75, 1: 75}, set(), 75),  # the ranks were asked, and not the launcher
    ],
)
def test_one_code_of_a_node(ended, passed, code):
    assert exit_code(ended, passed) == code


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGUSR1", 75), ("SIGINT", 130), ("fail", 137)])
def test_ranks_hear_signals_and_give_the_exit_code(tmp_path, name, code):
    """Two ranks under torchrun, which alone would die of SIGUSR1, and would end with 1 after everything."""
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    words = ["launch", "--config_file", "ddp", "--num_processes", "2", str(program), name]
    command, log = [sys.executable, "-m", "align.cli", *words], tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=INSTALLED, stdout=file, stderr=subprocess.STDOUT)
    until = time.monotonic() + 200
    while name != "fail" and log.read_text().count("is up") < 2:
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.1)
    if name != "fail":
        process.send_signal(getattr(signal, name))
    assert process.wait(100) == code, log.read_text()
    said = log.read_text()
    expected = {
        "SIGUSR1": "asked to stop by SIGUSR1; ",
        "SIGINT": "interrupted; ",
        "fail": "rank 1 was killed by SIGKILL",
    }
    assert said.count(expected[name]) == 1 and "Traceback" not in said
