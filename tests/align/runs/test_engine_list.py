"""The list of servers that `align engine` keeps in a run, from the command line to what a trainer reads."""

import json

import pytest

from align import cli
from align.runs import engine_list
from align.runtime.json_files import RunFileError
from align.runtime.lock import locked

A, B = "http://127.0.0.1:8001", "unix:///run/b"


def made(folder, urls=(A,)):
    """A run whose ppo stage has begun."""
    stage = folder / "ppo"
    stage.mkdir(parents=True)
    rollout = {"vllm": {"urls": list(urls)}} if urls else {"engine": "vllm"}
    (stage / "recipe.yaml").write_text(json.dumps({"ppo": {"rollout": rollout}}))
    return stage


def test_servers_are_added_and_removed_and_the_key_is_nowhere(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ALIGN_VLLM_API_KEY", "the-key-of-all-servers")
    stage = made(tmp_path)
    assert engine_list.read(stage) == ()
    for what, url, run, listed in (
        ("add", B, tmp_path, (A, B)),
        ("add", "https://c:8000/", stage, (A, B, "https://c:8000")),
        ("remove", A, tmp_path, (B, "https://c:8000")),
    ):
        assert cli.main(["engine", what, url, str(run)]) == 0
        assert engine_list.read(stage) == listed
        assert f"from its next iteration on {stage} uses {', '.join(listed)}" in capsys.readouterr().out
    assert b"the-key" not in b"".join(path.read_bytes() for path in stage.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("what", "url", "said"),
    [
        ("add", A, f"{A} is listed already"),
        ("add", "http://far:1", "plain http to far would show"),
        ("add", "https://me:secret@far", "put a key into an environment variable"),
        ("add", "ftp://far", "must begin with https://"),
        ("remove", B, f"'{B}' is not listed; these are: {A}"),
        ("remove", A, "is the last server: add another before it goes"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(tmp_path, capsys, monkeypatch, what, url, said):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    stage = made(tmp_path)
    assert cli.main(["engine", what, url, str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert said in told and "secret" not in told and engine_list.read(stage) == ()


def test_runs_that_have_no_list_are_told_apart(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    made(tmp_path / "own", urls=())
    for run, said in ((tmp_path / "none", "holds no ppo stage that has begun"), (tmp_path / "own", "vllm_server")):
        assert cli.main(["engine", "add", A, str(run)]) == 1
        assert said in capsys.readouterr().err
    stage = made(tmp_path / "busy")
    with locked(stage, [engine_list.LOCK]):
        assert cli.main(["engine", "add", B, str(stage)]) == 1
    assert "another process is running 'engine'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"urls": []}', '{"urls": [1]}', '{"urls": ["http://far"]}'])
def test_a_damaged_list_is_not_used(tmp_path, text):
    stage = made(tmp_path)
    (stage / engine_list.FILE).write_text(text)
    with pytest.raises(RunFileError, match=r"engines\.json is .*: remove it"):
        engine_list.read(stage)
