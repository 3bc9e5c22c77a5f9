"""Which command is printed to go on with, and which rank speaks."""

import logging
import shlex

import pytest

from align.runs import launch
from align.runs.launch import started_as
from data_formats.errors import DataError
from tests.commands import exit_code

WORDS = ["my recipe.yaml", "seed=3"]


class Parent:
    def __init__(self, line):
        self.line = line

    def cmdline(self):
        return shlex.split(self.line)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "/venv/bin/python /venv/bin/accelerate launch --num_processes 2 -m align.ppo 'my recipe.yaml' seed=3",
            "accelerate launch --num_processes 2 -m align.ppo 'my recipe.yaml' seed=3",
        ),
        (
            "/venv/bin/python -m torch.distributed.run --nproc_per_node 2 align/ppo.py 'my recipe.yaml' seed=3",
            "python -m torch.distributed.run --nproc_per_node 2 align/ppo.py 'my recipe.yaml' seed=3",
        ),
        ("/bin/bash run.sh", "accelerate launch align/ppo.py 'my recipe.yaml' seed=3"),
        ("accelerate launch align/sft.py other.yaml", "accelerate launch align/ppo.py 'my recipe.yaml' seed=3"),
    ],
)
def test_the_launcher_and_its_options_are_kept(monkeypatch, line, shown):
    monkeypatch.setattr("psutil.Process.parents", lambda self: [Parent(line), Parent("/sbin/init")])
    assert started_as("align/ppo.py", WORDS) == shown


def test_fresh_is_not_repeated(monkeypatch):
    line = "/venv/bin/accelerate launch align/ppo.py r.yaml --fresh"
    monkeypatch.setattr("psutil.Process.parents", lambda self: [Parent(line)])
    assert started_as("align/ppo.py", ["r.yaml", "--fresh"]) == "accelerate launch align/ppo.py r.yaml"


def test_a_chain_of_several_ranks_is_continued_with_as_many(monkeypatch):
    words = ["run", "r.yaml", "--from", "sft"]
    monkeypatch.setattr("psutil.Process.parents", lambda self: [])
    assert started_as("align", words, alone=()) == "align run r.yaml"
    line = "/venv/bin/python /venv/bin/torchrun --nproc_per_node 2 -m align.cli run r.yaml --from sft"
    monkeypatch.setattr("psutil.Process.parents", lambda self: [Parent(line)])
    assert started_as("align", words, alone=()) == "torchrun --nproc_per_node 2 -m align.cli run r.yaml"


@pytest.mark.parametrize(("debug", "level"), [(False, "ERROR"), (True, None)])
def test_warnings_of_c_extensions_are_for_those_who_debug(monkeypatch, debug, level):
    monkeypatch.setattr(launch.os, "environ", {})
    launch.prepare(debug)
    assert launch.os.environ.get("TORCH_CPP_LOG_LEVEL") == level


def test_the_first_rank_speaks_at_once_and_others_only_if_they_live_on(monkeypatch, capsys):
    waited = []
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    monkeypatch.setattr(launch.time, "sleep", waited.append)

    def fail(error):
        raise error

    assert exit_code(lambda: fail(DataError("odd")), proceed="x") == 1 and not waited
    monkeypatch.setenv("RANK", "1")
    assert exit_code(lambda: fail(DataError("odd")), proceed="x") == 1 and waited == [launch.LAST_WORD_SECONDS]
    assert capsys.readouterr().err == "error: odd\n" * 2
    assert exit_code(lambda: fail(KeyboardInterrupt()), proceed="x") == 130
    assert capsys.readouterr().err == ""


def test_what_is_said_at_the_end_and_on_the_way_hides_the_secrets_of_addresses(monkeypatch, capsys):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    launch.prepare()

    def fail(error):
        raise error

    url = "ppo.reward.0.url=https://host/x?token=abcdef"
    assert exit_code(lambda: fail(DataError(f"'{url}' is odd")), proceed="x") == 1
    assert exit_code(lambda: fail(KeyboardInterrupt()), proceed=f"align run r.yaml {url}") == 130
    logging.getLogger("reward.somewhere").warning("at %s", url)
    told = capsys.readouterr().err
    assert told.count("https://host/x?token=***") == 3 and "abcdef" not in told


def test_what_the_system_refuses_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    assert exit_code(lambda: len((tmp_path / "none").read_text()), proceed="x") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the system refused: [Errno 2] No such file") and said.count("\n") == 1
    monkeypatch.setenv("ALIGN_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        exit_code(lambda: len((tmp_path / "none").read_text()), proceed="x")
