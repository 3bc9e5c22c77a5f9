"""sft.py, rm.py and ppo.py launched as a user launches them, to the end of their stages."""

import json

import pytest

from align import cli, rm
from tests.commands import INSTALLED, accelerate, on_two_ranks
from tests.ranks import on_ranks
from tests.recipes.miniature import arguments


def summary(folder, stage):
    return json.loads((folder / "run" / stage / "summary.json").read_text(encoding="utf-8"))


def rm_on_a_rank(words):
    assert rm.main(words) == 0


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
def test_the_chain_stage_by_stage(tmp_path, capsys):
    """As a module from another folder, here, and on two ranks, last as a file; `align run` finds all of it."""
    words, folder = arguments(tmp_path), tmp_path / "elsewhere"
    folder.mkdir()
    done = accelerate("-m", "align.sft", "qwen_rlhf", *words, cwd=folder, env=INSTALLED)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "train.jsonl (messages): 40 rows, 40 kept" in done.stderr
    assert "sft  3/3 (100%)" in done.stdout + done.stderr
    assert "sft: loss" in (tmp_path / "run/report/index.html").read_text(encoding="utf-8")
    assert rm.main(["qwen_rlhf", "--stage", "pmp", *words]) == 0
    on_ranks(2, rm_on_a_rank, ["qwen_rlhf", *words])
    done = on_two_ranks("align/ppo.py", "qwen_rlhf", *words)
    assert done.returncode == 0, done.stderr
    reads = [line for line in done.stderr.splitlines() if line.endswith(" kept")]
    assert len(reads) == len(set(reads)) > 0, "only the first rank talks"
    capsys.readouterr()
    assert cli.main(["run", "qwen_rlhf", *words]) == 0
    finished = capsys.readouterr().out
    for stage in ("sft", "pmp", "rm", "ppo"):
        assert f"{stage}: finished before" in finished
        steps = [line.get("step") for line in map(json.loads, (tmp_path / "run" / stage / "metrics.jsonl").open())]
        assert steps == sorted(steps) and max(steps) == 3
        assert summary(tmp_path, stage)["steps"] == 3
    assert summary(tmp_path, "")["ppo"] == summary(tmp_path, "ppo")
    assert not list(folder.iterdir())
    assert summary(tmp_path, "rm")["pairs"] == 12
    rows = [json.loads(line) for line in (tmp_path / "run" / "ppo" / "eval.jsonl").open()]
    assert len(rows) == 3
