"""The entry scripts up to the point where training would begin; `test_entries_run.py` launches them."""

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from align.recipe.registry import ENTRIES

ROOT = Path(__file__).parents[2]
ENV = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def launch(*args, cwd=ROOT):
    return subprocess.run([sys.executable, *args], cwd=cwd, env=ENV, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_is_short_and_defines_no_class(entry):
    text = (ROOT / "align" / f"{entry}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]


SPY = """
import runpy, sys
for file in sys.argv[1:]:
    sys.argv[:], sys.path[0] = [file, "--help"], file.rpartition("/")[0]
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit as end:
        print("ended with", end.code, sys.path[0])
"""


def test_as_a_file_from_another_folder_the_root_stands_on_the_path_instead_of_the_files_own(tmp_path):
    done = launch("-c", SPY, *(str(ROOT / f"align/{entry}.py") for entry in ENTRIES), cwd=tmp_path)
    *said, rest = done.stdout.split(f"ended with 0 {ROOT}\n")
    assert len(said) == len(ENTRIES) and not rest, done.stderr
    for entry, shown in zip(ENTRIES, said, strict=True):
        assert f"align/{entry}.py" in shown and "RECIPE" in shown
        assert ("--stage" in shown) == (entry == "rm")


@pytest.fixture
def fails(tmp_path, monkeypatch, capsys):
    """`fails(entry, *words)`: what it says when it ends with 1, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)

    def said(entry, *words):
        assert import_module(f"align.{entry}").main([*map(str, words)]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        return shown.err

    return said


def test_a_missing_input_stage_is_one_error_with_the_command(fails):
    assert fails("ppo", "quickstart", "seed=3") == (
        "error: ppo starts from sft and rm, which are not finished "
        "(runs/quickstart/sft/model, runs/quickstart/rm/model missing); run: align run quickstart seed=3\n"
    )


@pytest.mark.parametrize(("stage", "parent"), [("pmp", "base"), ("rm", "pmp")])
def test_rm_runs_the_stage_that_is_asked_for(stage, parent, tmp_path, fails):
    args = [] if stage == "rm" else ["--stage", stage]
    said = fails("rm", "quickstart", *args, f"output_dir={tmp_path}/out")
    assert said.startswith(f"error: {stage} starts from {parent}, which is not finished")


def test_user_errors_have_no_traceback(tmp_path, fails):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: [\n")
    assert fails("sft", recipe).startswith(f"error: {recipe}: line ")
    said = fails("base", "qwen_rlhf", f"data_root={tmp_path}")
    assert said == "error: qwen_rlhf: has no stage 'base'; it has sft, pmp, rm, ppo\n"
