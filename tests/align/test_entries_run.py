"""sft.py, rm.py and ppo.py launched as a user launches them, to the end of their stages."""

import json

import pytest

from tests.commands import INSTALLED, accelerate, align, on_two_ranks
from tests.recipes.miniature import arguments


def summary(folder, stage):
    return json.loads((folder / "run" / stage / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_sft_from_the_repository(tmp_path):
    done = accelerate("align/sft.py", "qwen_rlhf", *arguments(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "sft: " in done.stderr and "train.jsonl (messages): 40 rows, 40 kept" in done.stderr
    assert "sft  3/3 (100%)" in done.stdout + done.stderr
    assert summary(tmp_path, "sft")["steps"] == 3
    assert "sft: loss" in (tmp_path / "run/report/index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_missing_input_is_one_error_that_names_the_command(tmp_path):
    words = arguments(tmp_path)
    done = accelerate("--quiet", "align/ppo.py", "qwen_rlhf", *words)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    run = tmp_path / "run"
    assert line == (
        f"error: ppo starts from sft and rm, which are not finished ({run}/sft/model, {run}/rm/model missing); "
        f"run: align run qwen_rlhf {' '.join(words)}"
    )
    assert not run.exists()


@pytest.mark.slow
def test_the_chain_stage_by_stage(tmp_path):
    """From another folder as modules in one process, then as files on two ranks; `align run` finds all of it."""
    words, folder = arguments(tmp_path), tmp_path / "elsewhere"
    folder.mkdir()
    for module, options in (("sft", []), ("rm", ["--stage", "pmp"])):
        done = accelerate("-m", f"align.{module}", "qwen_rlhf", *options, *words, cwd=folder, env=INSTALLED)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    for file in ("rm.py", "ppo.py"):
        done = on_two_ranks(f"align/{file}", "qwen_rlhf", *words)
        assert done.returncode == 0, done.stderr
        reads = [line for line in done.stderr.splitlines() if line.endswith(" kept")]
        assert len(reads) == len(set(reads)), "only the first rank talks"
    finished = align("run", "qwen_rlhf", *words, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    for stage in ("sft", "pmp", "rm", "ppo"):
        assert f"{stage}: finished before" in finished.stdout
        steps = [line.get("step") for line in map(json.loads, (tmp_path / "run" / stage / "metrics.jsonl").open())]
        assert steps == sorted(steps) and max(steps) == 3
        assert summary(tmp_path, stage)["steps"] == 3
    assert summary(tmp_path, "")["ppo"] == summary(tmp_path, "ppo")
    assert not list(folder.iterdir())
    assert summary(tmp_path, "rm")["pairs"] == 12
    rows = [json.loads(line) for line in (tmp_path / "run" / "ppo" / "eval.jsonl").open()]
    assert len(rows) == 3
