import math

import pytest

from align.runs.run_files import StageFiles, clean, number, read_run
from tests.align.report.synthetic_run import write


@pytest.mark.parametrize("value", [True, None, "1", [], math.nan, math.inf, 10**400])
def test_what_is_no_finite_number(value):
    assert number(value) is None


def test_numbers():
    assert number(3) == 3.0 and number(-0.5) == -0.5


def test_text_for_a_page():
    assert clean("a\r\nb\tc\x00\x1b\x7f\ud800\u4f60") == "a\nb\tc␀␛��你"
    assert clean(None) == "" and clean(["ä"]) == '["ä"]'
    assert clean("abcdef", 4) == "abcd … (2 more characters)"


def test_series_are_ordered_and_the_last_line_of_a_step_counts():
    lines = [
        {"step": 2, "loss": 1.0},
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": None},
        {"step": 4, "eval_loss": 9},
        {"loss": 7.0},
    ]
    assert StageFiles("sft", metrics=lines).series("loss") == ([1.0, 2.0], [3.0, 0.5])
    assert StageFiles("sft", metrics=lines).last_step == 4


def test_expected_stages_are_those_of_the_recipe_and_those_that_left_something(tmp_path):
    write(tmp_path / "rm/recipe.yaml", "name: n\nrm: {}\nppo: {data: x}\nsft: null\n")
    write(tmp_path / "base/metrics.jsonl", [{"step": 1}])
    run = read_run(tmp_path)
    assert run.expected == ["base", "rm", "ppo"]
    assert [run.stages[name].state for name in ("base", "rm", "ppo")] == ["unfinished", "unfinished", "not run"]
    assert run.name == "n"


def test_the_chains_summary_stands_in_for_a_stages_own(tmp_path):
    write(tmp_path / "summary.json", {"name": "n", "sft": {"heldout_loss": 1.0}, "rm": 3})
    write(tmp_path / "sft/metrics.jsonl", [])
    run = read_run(tmp_path)
    assert run.stages["sft"].summary == {"heldout_loss": 1.0}
    assert run.stages["rm"].state == "not run"


def test_line_separators_inside_a_string_do_not_end_a_line(tmp_path):
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo/eval.jsonl").write_text('{"prompt": "a\u2028b"}\n', encoding="utf-8")
    run = read_run(tmp_path)
    assert run.stages["ppo"].evals == [{"prompt": "a\u2028b"}] and run.problems == []
