"""The `align` command as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align import __version__, cli
from align.runs.arguments import parse_with_overrides, without_redoing
from align.runtime.errors import AlignError
from data_formats.errors import DataError
from tests.commands import align, exit_code, heed_ctrl_c

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_help_and_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for command in ("run", "check", "recipes", "quickstart", "accelerate launch"):
        assert command in shown
    assert "where STAGE is base, sft, rm, rejection, dpo or ppo" in " ".join(shown.split())
    assert align("--version").stdout.strip() == f"align {__version__}"  # as a process


def test_only_its_own_help_reads_the_table_of_stages(tmp_path):
    code = "import sys; from align.cli import _parser; _parser(); print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_check_prints_the_plan_fast_and_without_torch(tmp_path):
    code = (
        "import sys, json; from align.cli import main; rc = main(['check', 'quickstart', 'seed=3']); "
        "print(json.dumps([rc, [m for m in ('torch', 'transformers', 'numpy', 'rich') if m in sys.modules]]))"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=60
    )
    took = time.perf_counter() - began
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []], done.stderr
    assert "quickstart: seed 3, output runs/quickstart" in done.stdout
    assert "policy sft, reward rm, critic rm" in done.stdout
    assert took < 5  # one second on a quiet machine; this one may be busy
    assert not list(tmp_path.iterdir())


def test_check_tells_all_errors_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    wrong = ("ppo.kl_coef=0", "ppo.kl_target=1", "sft.data=[nowhere.jsonl]")
    assert cli.main(["check", str(ROOT / "recipes/quickstart.yaml"), *wrong]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert lines[0].startswith("error: ") and lines[0].endswith("has 2 errors:")
    assert lines[1:] == [
        "  ppo.kl_coef: 0 cannot be adapted, since kl_target multiplies it; start above 0",
        "  sft.data.0.path: no such file nowhere.jsonl; set data_root=<folder> to say where the files lie",
    ]


def test_check_looks_at_the_first_rows_of_the_data(tmp_path, capsys):
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r", "mood": "good"}]
    data = tmp_path / "talk.jsonl"
    data.write_text(json.dumps({"messages": talk, "foo": 1}) + "\n", encoding="utf-8")
    words = ["check", "quickstart", f"sft.data=[{data}]", f"sft.eval_data=[{data}]"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    said = f"sft.data.0: {data}: fields passed over in its first rows: foo 1, messages[].mood 1\n"
    assert said in shown and "sft.eval_data" not in shown  # the same file
    data.write_text(json.dumps({"messages": [talk[0], talk[1] | {"weight": 0.5}]}) + "\n", encoding="utf-8")
    assert cli.main(words) == 1
    assert f"error: {data}, line 1, field 'messages[1].weight'" in capsys.readouterr().err


def test_check_plans_for_more_processes(capsys):
    assert cli.main(["check", "quickstart", "--num-processes", "3"]) == 1 and "3 ranks" in capsys.readouterr().err
    assert cli.main(["check", "quickstart", "--num-processes", "2"]) == 0


@pytest.mark.parametrize("ranks", ["0", "-1", "two"])
def test_a_number_of_ranks_is_at_least_one(ranks, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", "quickstart", f"--num-processes={ranks}"])
    assert stop.value.code == 2
    assert f"must be a whole number of at least 1, not '{ranks}'" in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch, capsys):
    """Which Python does, of an error that nobody takes up."""
    for value, more in (("0", ["--debug"]), ("1", [])):
        monkeypatch.setenv("ALIGN_DEBUG", value)
        with pytest.raises(AlignError, match=r"nowhere\.yaml: no such recipe file"):
            cli.main(["check", "nowhere.yaml", *more])
    monkeypatch.setenv("ALIGN_DEBUG", "0")
    capsys.readouterr()
    assert cli.main(["check", "nowhere.yaml"]) == 1
    (quiet,) = capsys.readouterr().err.splitlines()
    assert quiet.startswith("error: nowhere.yaml: no such recipe file")


def test_recipes(tmp_path, capsys):
    assert cli.main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert cli.main(["recipes", "list"]) == 0
    assert capsys.readouterr().out == listed
    assert "qwen_rlhf" in listed
    assert cli.main(["recipes", "show", "quickstart"]) == 0
    assert capsys.readouterr().out == (ROOT / "recipes/quickstart.yaml").read_text(encoding="utf-8")
    assert cli.main(["recipes", "copy", "quickstart", str(tmp_path / "mine.yaml")]) == 0
    assert cli.main(["check", str(tmp_path / "mine.yaml")]) == 0
    assert cli.main(["recipes", "copy", "quickstart", str(tmp_path / "mine.yaml")]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "COMMAND"),
        (["train"], "invalid choice"),
        (["run"], "the following arguments are required: RECIPE\n"),
        (["check"], "the following arguments are required: RECIPE\n"),
        (["check", "quickstart", "--frsh"], "--frsh"),
    ],
)
def test_bad_usage_exits_with_2(argv, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_overrides_and_options_in_any_order():
    parser = cli._parser()
    args = parse_with_overrides(parser, ["run", "r.yaml", "a=1", "--fresh", "b=2", "--debug", "a=3"])
    assert (args.recipe, args.overrides, args.fresh, args.debug) == ("r.yaml", ["a=1", "b=2", "a=3"], True, True)
    args = parse_with_overrides(parser, ["run", "--fresh", "r.yaml", "x=-1"])
    assert (args.recipe, args.overrides, args.fresh) == ("r.yaml", ["x=-1"], True)


def test_stages_may_follow_fresh_and_recipe_and_overrides_stay_what_they_are():
    parser = cli._parser()

    def parsed(*words):
        args = parse_with_overrides(parser, ["run", *words])
        return args.recipe, args.overrides, args.fresh, args.start, args.accept, args.yes

    assert parsed("r.yaml", "--fresh", "ppo", "a=1") == ("r.yaml", ["a=1"], ("ppo",), None, [], False)
    assert parsed("--fresh", "sft", "rm", "r.yaml", "--yes") == ("r.yaml", [], ("sft", "rm"), None, [], True)
    assert parsed("--fresh=rm,ppo", "r.yaml") == ("r.yaml", [], ("rm", "ppo"), None, [], False)
    assert parsed("r.yaml", "--from", "rm", "--accept", "ppo.reward", "--accept", "sft.data", "a=1") == (
        *("r.yaml", ["a=1"], False, "rm"),
        *(["ppo.reward", "sft.data"], False),
    )


def test_the_command_that_continues_starts_nothing_anew():
    words = [
        "run",
        "r.yaml",
        "--fresh",
        "ppo",
        "rm",
        "a=1",
        "--from",
        "sft",
        "--from=rm",
        "--yes",
        "--accept",
        "ppo.data",
    ]
    assert without_redoing(words) == ["run", "r.yaml", "a=1", "--accept", "ppo.data"]
    assert without_redoing(["ppo", "a=1"]) == ["ppo", "a=1"]


def test_run_checks_before_anything_heavy(tmp_path):
    """And telemetry is off from the start."""
    code = (
        "import os, sys; from align.cli import main; rc = main(['run', 'quickstart', 'sft.lr=1']); "
        "print(rc, 'torch' in sys.modules, os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    )
    env = {key: value for key, value in ENV.items() if key != "HF_HUB_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["1", "False", "1"]
    assert "sft.lr: unknown key" in done.stderr


def test_the_quickstart_keeps_the_run_of_another_seed(tmp_path, capsys):
    out = tmp_path / "quickstart"

    def made(seed):
        (out / "base").mkdir(parents=True)
        (out / "base/recipe.yaml").write_text(f"name: quickstart\nseed: {seed}\n")

    cli._keep_other_seed(out, 0)  # nothing there
    made(0)
    cli._keep_other_seed(out, 0)  # the same seed continues
    assert (out / "base").is_dir()
    cli._keep_other_seed(out, 7)
    assert not out.exists() and (tmp_path / "quickstart-seed0/base").is_dir()
    assert "held the run of seed 0" in capsys.readouterr().out
    made(7)
    cli._keep_other_seed(out, 0)  # and back again
    assert "seed: 0" in (out / "base/recipe.yaml").read_text()
    assert (tmp_path / "quickstart-seed7/base").is_dir() and not (tmp_path / "quickstart-seed0").exists()


def test_how_work_ends(capsys, monkeypatch):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)

    def fail(error):
        raise error

    assert exit_code(lambda: None, proceed="x") == 0
    assert exit_code(lambda: fail(DataError("odd", path="a.jsonl", line=3, field="text")), proceed="x") == 1
    assert capsys.readouterr().err == "error: a.jsonl, line 3, field 'text': odd\n"
    assert (
        exit_code(lambda: fail(KeyboardInterrupt("stage 'sft' stopped at step 3")), proceed="align run r.yaml") == 130
    )
    assert capsys.readouterr().err.strip() == (
        "stage 'sft' stopped at step 3; what is finished or saved is kept. Continue with: align run r.yaml"
    )
    with pytest.raises(ZeroDivisionError):  # a bug of ours keeps its traceback
        exit_code(lambda: 1 / 0, proceed="x")


def test_ctrl_c_names_the_command_that_continues(tmp_path):
    code = (
        "import sys, time; from align import cli; "
        "cli.check_command = lambda args: (print('ready', flush=True), time.sleep(60)); "
        "sys.exit(cli.main(['check', 'my recipe.yaml', 'seed=3']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Continue with: align check 'my recipe.yaml' seed=3" in shown
    assert "Traceback" not in shown


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m align.cli recipes show quickstart | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("# The embedded default")
    assert "Traceback" not in done.stderr
