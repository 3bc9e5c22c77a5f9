"""Paths that nothing can have are one sentence wherever they are typed."""

import errno
import os
from pathlib import Path

import pytest

from align import cli
from align.recipe.load import inspect, load_recipe
from align.runtime.errors import AlignError
from align.runtime.paths import PathError, typed_path
from data_formats import Document, read, stream

LONG = "x" * 5000
IMPOSSIBLE = ("~nouser/x", LONG, f"~/{LONG}", "a\0b", "\ud83d")


@pytest.mark.parametrize("path", IMPOSSIBLE)
def test_an_impossible_path_is_refused_in_a_short_sentence(path):
    with pytest.raises(PathError) as refused:
        typed_path(path)
    assert len(str(refused.value)) < 200 and "\n" not in str(refused.value) and refused.value.__cause__ is not None


def test_a_closed_folder_is_refused(monkeypatch):
    """As the system says it to anybody but root."""
    monkeypatch.setattr(os, "stat", lambda path: (_ for _ in ()).throw(PermissionError(errno.EACCES, "closed")))
    with pytest.raises(PathError, match="secret/x: cannot be looked up"):
        typed_path("secret/x")


def test_possible_paths_pass_whether_or_not_something_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    assert typed_path("~/file") == tmp_path / "file" and typed_path("~/none/x") == tmp_path / "none/x"
    assert typed_path("~/file/inside") == tmp_path / "file/inside"


@pytest.mark.parametrize("path", IMPOSSIBLE[:-1])
@pytest.mark.parametrize(
    "words",
    [
        *(["data", "stats", "PATH"], ["data", "inspect", "PATH"], ["data", "convert", "PATH", "out.jsonl"]),
        *(["data", "convert", "ROWS", "PATH"], ["data", "split", "ROWS", "PATH"]),
        *(["data", "inspect", "ROWS", "--cleaning", "PATH"], ["data", "inspect", "hub:PATH"]),
        *(["check", "PATH"], ["recipes", "copy", "quickstart", "PATH"], ["doctor", "PATH"], ["plan", "PATH"]),
    ],
)
def test_commands(tmp_path, capsys, monkeypatch, words, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    Path("rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 9)
    said = [word.replace("PATH", path).replace("ROWS", "rows.jsonl") for word in words]
    assert cli.main(said) == 1
    out, err = capsys.readouterr()
    told = [line for line in (out + err).splitlines() if line.startswith(("error: ", "refused: "))]
    assert len(told) == 1 and len(told[0]) < 400 and "Traceback" not in out + err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


@pytest.mark.parametrize("path", IMPOSSIBLE[:-1])
@pytest.mark.parametrize(
    "key",
    [
        *("output_dir", "data_root", "model.path", "sft.data.0", "sft.data.0.path", "sft.data.0.hub"),
        *("sft.init_from", "ppo.init_from", "ppo.reward_from", "ppo.critic_from"),
    ],
)
def test_keys_of_a_recipe(key, path):
    quoted = '"' + path.replace("\0", "\\0") + '"'
    first = ["sft.data=[{path: a}]"] if key.startswith("sft.data.0.") else []
    problems = inspect("quickstart", [*first, f"{key}={quoted}"]).problems
    told = [problem for problem in problems if problem.startswith(key) and len(problem) < 200]
    assert told, problems


def test_the_home_folder_is_meant_by_output_dir_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_recipe("quickstart", ["output_dir=~/runs"]).output_dir == str(tmp_path / "runs")
    assert load_recipe("quickstart", ["output_dir=runs/x/"]).output_dir == "runs/x/"


@pytest.mark.parametrize("path", IMPOSSIBLE)
def test_readers(path):
    for name in (path, f"{path}.jsonl", f"{path}.txt"):
        with pytest.raises(AlignError):
            read(name, Document)
        with pytest.raises(AlignError):
            list(stream(name, Document))
