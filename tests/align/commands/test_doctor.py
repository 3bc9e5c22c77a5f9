import json
import os
import subprocess
import sys

import pytest

from align import cli
from align.doctor.rule import RULES
from tests.align.doctor import doctor_case
from tests.commands import INSTALLED


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run folder whose ppo stage does not move."""
    root = tmp_path_factory.mktemp("run")
    doctor_case.run(root / "ppo", num_iterations=6, critic_warmup_steps=2, policy={"learning_rate": 1e-9})
    return root


@pytest.fixture
def asked(capsys, monkeypatch):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)

    def ask(*words, code=0):
        capsys.readouterr()
        assert cli.main(["doctor", *map(str, words)]) == code
        return capsys.readouterr()

    return ask


def test_the_run_its_stage_and_its_file_say_the_same(run_folder, asked):
    stage = run_folder / "ppo"
    shown = [asked(path, "--json").out for path in (run_folder, stage, stage / "metrics.jsonl")]
    found = [json.loads(text) for text in shown]
    assert [one.pop("run") for one in found] == [str(run_folder), str(stage), str(stage / "metrics.jsonl")]
    assert found[0] == found[1] == found[2]
    assert (found[0]["iterations"], found[0]["first_step"], found[0]["last_step"]) == (6, 1, 6)
    (finding,) = found[0]["findings"]
    assert finding["rule"] == "policy-still" and finding["severity"] == "problem"
    assert finding["figures"]["kl/k3_token"] < 1e-10 and finding["steps"] == [5, 6]
    assert "the policy's learning rate is small" in finding["causes"] and finding["changes"]
    assert {"policy-still", *found[0]["clear"], *found[0]["could_not_look"]} == set(RULES)


def test_words_for_the_terminal(run_folder, asked, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = asked(run_folder).out
    lines = shown.splitlines()
    assert lines[0] == f"{run_folder}: 6 iterations logged, steps 1 to 6; 1 problem, 0 notes"
    assert lines[2] == "problem  The policy does not move (policy-still)"
    assert lines[3].startswith("      seen kl/k3_token is ") and lines[4].startswith(" " * 11)
    assert "    change ppo.policy.learning_rate higher (ten times, to see)" in lines
    assert "rules saw nothing: " in shown and "could not look: " in shown
    assert max(map(len, lines[1:])) <= 100 and not any(line.endswith(" ") for line in lines)


def test_only_strict_turns_a_problem_into_an_exit_code(run_folder, tmp_path, asked):
    asked(run_folder, "--strict", code=3)
    asked(run_folder, "--strict", "--json", code=3)
    sound = doctor_case.run(tmp_path, num_iterations=4, critic_warmup_steps=2)
    assert "0 problems, 0 notes" in asked(sound, "--strict").out


def test_what_cannot_be_read_is_one_sentence(run_folder, tmp_path, asked):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    for path, words in (
        (tmp_path / "no", "no such run folder, stage folder or metrics.jsonl"),
        (tmp_path, "holds no metrics.jsonl and no ppo/metrics.jsonl"),
        (tmp_path / "sft", "none of its 1 lines is one of a PPO iteration"),
        (run_folder / "ppo" / "recipe.yaml", "is another file; name a run folder"),
    ):
        said = asked(path, code=1)
        assert said.out == "" and said.err.startswith("error: ") and words in said.err and str(path) in said.err
        assert len(said.err.splitlines()) == 1


def test_a_recipe_that_cannot_be_read_is_named_and_the_figures_are_read(run_folder, tmp_path, asked):
    (tmp_path / "metrics.jsonl").write_bytes((run_folder / "ppo" / "metrics.jsonl").read_bytes())
    (tmp_path / "recipe.yaml").write_text("ppo: [unclosed\n")
    found = json.loads(asked(tmp_path, "--json").out)
    notes = {finding["rule"]: finding["words"] for finding in found["findings"]}
    assert set(notes) == {"policy-still", "file-not-whole"} and "recipe.yaml" in notes["file-not-whole"]
    assert "recipe.yaml says no ppo.reward_clip_range" in found["could_not_look"]["reward-clipped"]


def test_it_imports_nothing_heavy(run_folder):
    code = (
        "import sys; from align.cli import main; rc = main(['doctor', sys.argv[1], '--json']); "
        "print([rc, *(m for m in ('torch', 'transformers', 'numpy', 'matplotlib', 'rich') if m in sys.modules)])"
    )
    words = [sys.executable, "-c", code, str(run_folder)]
    done = subprocess.run(words, env=os.environ | INSTALLED, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[0]", done.stderr
