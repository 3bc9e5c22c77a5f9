"""What is done anew when a recipe changes, what goes on for longer or with an accepted change, and what stays."""

import json
import logging
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from align import cli
from align.recipe import RecipeError, dump_recipe
from align.runs import checkpoint
from align.runs.acceptance import accepting
from align.runs.errors import CheckpointError
from align.stages import common
from align.stages.chain import run_chain, run_stage
from align.stages.recipe_guard import RecipeChangedError
from tests.align.stages.small_chain import small_recipe, write_data
from tests.commands import INSTALLED

CLOCK = ("runtime", "samples_per_second", "steps_per_second")


def lines(run, stage):
    """What metrics.jsonl tells, the clock's figures aside."""
    rows = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time" and not key.endswith(CLOCK)} for row in rows]


def summary(run, stage):
    return json.loads((run / stage / "summary.json").read_text())


def weights(run, stage):
    files = sorted((run / stage / "model").glob("*.safetensors"))
    assert files
    return [file.read_bytes() for file in files]


def written(run):
    """When every stage's model was written."""
    return {path.parts[-3]: path.stat().st_mtime_ns for path in run.glob("*/model/model.safetensors")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    write_data(folder)
    run_chain(small_recipe(folder, sft__save_steps=2))
    return folder


@pytest.fixture
def chain(finished, tmp_path):
    """A finished chain of its own: a function of changes that gives the recipe."""
    shutil.copytree(finished / "run", tmp_path / "run")
    place = {"output_dir": str(tmp_path / "run"), "sft__save_steps": 2}
    return lambda **changes: small_recipe(finished, **place | changes)


def test_what_changed_and_what_builds_on_it_is_done_anew_and_nothing_else(chain, capsys):
    recipe = chain(pmp__learning_rate=0.02)
    run = Path(recipe.output_dir)
    before = written(run)
    run_chain(recipe)
    said, after = capsys.readouterr().out, written(run)
    assert "pmp: starts anew (pmp.learning_rate was 0.01, is 0.02); removed what was made from it: rm\n" in said
    assert "kept as they are: base, sft\n" in said
    assert {stage for stage in after if after[stage] != before[stage]} == {"pmp", "rm"}
    run_chain(recipe)
    assert "anew" not in capsys.readouterr().out.replace("starts it anew", "") and written(run) == after


def test_a_stage_alone_follows_the_same_rules(chain, capsys):
    recipe = chain(pmp__learning_rate=0.02)
    run = Path(recipe.output_dir)
    with pytest.raises(RecipeChangedError, match=r"'rm' builds on 'pmp', which was made with another recipe"):
        run_stage(recipe, "rm")
    assert written(run).keys() == {"base", "sft", "pmp", "rm"}
    run_stage(recipe, "pmp")
    assert "pmp: starts anew (pmp.learning_rate was 0.01, is 0.02); removed" in capsys.readouterr().out
    assert written(run).keys() == {"base", "sft", "pmp"}  # which of them is trained again is for the user to say


@pytest.mark.parametrize("there", [True, False])
def test_a_stage_that_is_started_by_itself_tells_of_what_it_builds_on(chain, caplog, there):
    recipe = chain(base__weight_decay=0.1)
    if not there:
        shutil.rmtree(Path(recipe.output_dir) / "sft")
    logging.getLogger("align").addHandler(caplog.handler)
    run_stage(recipe, "sft", fresh=there)
    logging.getLogger("align").removeHandler(caplog.handler)
    told = "'sft' builds on 'base', which was made with another recipe (base.weight_decay was 0.0, is 0.1): run"
    assert told in caplog.text


@pytest.mark.slow
def test_what_is_removed_for_one_stage_is_listed_and_no_more(finished, tmp_path, capsys):
    """sft and rm both start from the base model that the recipe names."""
    keys = {"base": None, "pmp": None, "model__architecture": None, "output_dir": str(tmp_path / "two")}
    keys |= {"model__path": str(finished / "run/base/model")}
    for stage in ("sft", "rm"):
        run_stage(small_recipe(finished, **keys), stage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
        with pytest.raises(RecipeChangedError, match=r"another run; this removes sft \(finished\): give"):
            run_stage(small_recipe(finished, **keys, seed=2), "sft")
    run_stage(small_recipe(finished, **keys, seed=2), "sft", yes=True)
    assert summary(tmp_path / "two", "rm")["steps"] == 3


@pytest.mark.slow
def test_stages_that_are_named(chain, capsys):
    recipe = chain()
    run = Path(recipe.output_dir)
    before = written(run)
    run_chain(recipe, fresh=("sft",))
    after = written(run)
    assert {stage for stage in after if after[stage] != before[stage]} == {"sft"}
    run_chain(recipe, start="pmp")
    last = written(run)
    assert {stage for stage in last if last[stage] != after[stage]} == {"pmp", "rm"}
    said = capsys.readouterr().out
    assert "sft: starts anew\n" in said and "pmp: starts anew; removed what was made from it: rm" in said
    with pytest.raises(RecipeError, match="--from ppo: has no stage 'ppo'; it has base, sft, pmp, rm"):
        run_chain(recipe, start="ppo")


def test_a_change_of_what_every_stage_shares_wants_consent(chain, monkeypatch):
    recipe = chain(seed=2)
    run = Path(recipe.output_dir)
    before = written(run)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(RecipeChangedError, match=r"seed was 1, is 2.*removes base \(finished\), sft.*--fresh --yes"):
        run_chain(recipe)
    assert written(run) == before
    run_chain(recipe, yes=True)
    assert all(written(run)[stage] != before[stage] for stage in before)


@pytest.mark.parametrize("schedule", ["constant", pytest.param("linear", marks=pytest.mark.slow)])
def test_a_longer_stage_goes_on_from_its_last_checkpoint(chain, capsys, schedule):
    keys = {"sft__lr_scheduler_type": schedule, "sft__logging_steps": 3}
    run = Path(chain().output_dir)
    if schedule != "constant":
        run_stage(chain(**keys), "sft")
    capsys.readouterr()
    longer = chain(**keys, sft__max_steps=7)
    run_stage(longer, "sft")
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sft: goes on"))
    assert said.startswith("sft: goes on from step 4 to 7 steps (sft.max_steps was 4, is 7)")
    assert ("as a run of that length from the start would" in said) == (schedule == "constant")
    assert ("the linear learning rate is now that of the new length" in said) == (schedule == "linear")
    assert summary(run, "sft")["resumed_from"] == 4 and summary(run, "sft")["steps"] == 7
    grown, logged = weights(run, "sft"), lines(run, "sft")
    run_stage(longer, "sft", fresh=True)
    assert summary(run, "sft")["resumed_from"] == 0
    assert (weights(run, "sft") == grown) == (schedule == "constant")
    rates = [line["learning_rate"] for line in logged if "learning_rate" in line]
    assert rates[-1] == pytest.approx(0.01 if schedule == "constant" else 0.01 * 2 / 7)  # of step 6: 7 - 5 are left


@pytest.mark.slow
def test_without_a_checkpoint_a_longer_stage_starts_anew_and_says_so(chain, capsys):
    recipe = chain(rm__max_steps=4)
    run_chain(recipe)
    said = "rm: starts anew (rm.max_steps was 3, is 4; no checkpoint of it is left to go on from)"
    assert said in capsys.readouterr().out
    assert summary(Path(recipe.output_dir), "rm")["steps"] == 4


def stopped_sft(chain, step, **changes):
    """The sft stage, begun anew and stopped by Ctrl-C in the step after `step`."""
    from align.trainers.sft import SFTTrainer

    plain, calls = SFTTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2 * step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SFTTrainer, "training_step", interrupted)
        with pytest.raises(common.StageStopped, match=f"stopped at step {step}"):
            run_stage(chain(**changes), "sft", fresh=True)


def test_an_unfinished_stage_goes_on_with_a_change_that_is_accepted_and_notes_it(chain, capsys):
    stopped_sft(chain, 3)
    recipe = chain(sft__max_grad_norm=0.5)
    run = Path(recipe.output_dir)
    with pytest.raises(RecipeChangedError, match=r"max_grad_norm was 1\.0, is 0\.5.*--accept sft\.max_grad_norm"):
        run_chain(recipe)
    assert checkpoint.steps(run / "sft/checkpoints")[-1] == 3
    with pytest.raises(RecipeChangedError, match=r"is 0\.5\): start it anew \(--fresh sft\), or put the old"):
        run_chain(chain(sft__learning_rate=0.5))  # whose acceptance would be refused
    with pytest.raises(RecipeError, match=r"--accept sft\.learning_rate: comes back with the optimizer"):
        run_chain(chain(sft__learning_rate=0.5), accept=["sft"])
    run_chain(recipe, accept=["sft.max_grad_norm"])
    assert "sft: goes on although sft.max_grad_norm was 1.0, is 0.5" in capsys.readouterr().out
    entry = {"key": "sft.max_grad_norm", "was": 1.0, "is": 0.5, "step": 3}
    assert json.loads((run / "sft/accepted.json").read_text()) == {"changes": [entry]}
    assert summary(run, "sft")["accepted"] == [entry] and summary(run, "sft")["resumed_from"] == 3
    assert "max_grad_norm: 0.5" in (run / "sft/recipe.yaml").read_text()
    run_chain(recipe)
    assert "anew (" not in capsys.readouterr().out


def test_a_finished_stage_is_kept_for_good_when_its_change_is_accepted(chain):
    recipe = chain(base__weight_decay=0.1)
    run = Path(recipe.output_dir)
    before = written(run)
    run_chain(recipe, accept=["base"])
    run_chain(recipe)
    assert written(run) == before
    for stage in recipe.stages:  # all build on base
        assert [one["key"] for one in summary(run, stage)["accepted"]] == ["base.weight_decay"]


@pytest.mark.parametrize("before", [False, True])
def test_a_longer_stage_takes_no_change_that_its_checkpoint_brings_back(chain, before):
    keys, run = {"sft__learning_rate": 0.02}, Path(chain().output_dir)
    if before:  # accepted once, when nothing was to be trained any more
        run_stage(chain(**keys), "sft", accept=["sft.learning_rate"])
    words = r"--accept sft\.learning_rate: comes back with the optimizer of the checkpoint.*--fresh sft"
    with pytest.raises(RecipeError, match=words):
        run_stage(chain(**keys, sft__max_steps=7), "sft", accept=["sft.learning_rate"])
    assert summary(run, "sft")["steps"] == 4


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("sft.max_grad_nrom", "no such key; did you mean 'max_grad_norm'"),
        ("sft.data.7", "no such key"),
    ],
)
def test_only_keys_that_a_stage_can_go_on_with_are_accepted(chain, key, words):
    with pytest.raises(RecipeError, match=words):
        run_chain(chain(), accept=[key])


def add_rows(folder, name, count):
    """`count` more rows, or the same ones in another order."""
    rows = (folder / name).read_text().splitlines(keepends=True)
    (folder / name).write_text("".join(rows + rows[:count]) if count else "".join(reversed(rows)))


@pytest.mark.parametrize(
    ("count", "told"),
    [(8, "rows, now there are "), pytest.param(0, "rows, now there are others", marks=pytest.mark.slow)],
)
def test_rows_that_changed_under_an_unfinished_stage_are_refused_unless_accepted(chain, tmp_path, count, told):
    write_data(tmp_path)
    stopped_sft(chain, 3, data_root=str(tmp_path))
    recipe = chain(data_root=str(tmp_path))
    add_rows(tmp_path, "demonstrations.jsonl", count)
    with pytest.raises(CheckpointError, match=rf"sft\.data: .*step-3 was trained with \d+ {told}.*--accept sft\.data"):
        run_stage(recipe, "sft")
    done = run_stage(recipe, "sft", accept=["sft.data"])
    assert done["resumed_from"] == 3 and done["steps"] == 4
    (noted,) = [one for one in done["accepted"] if one["key"] == "sft.data"]
    assert noted["step"] == 3 and noted["is"]["sha256"] != noted["was"]["sha256"]
    assert (noted["is"]["rows"] > noted["was"]["rows"]) == (count > 0)


@pytest.mark.parametrize("stage", ["base", *(pytest.param(later, marks=pytest.mark.slow) for later in ("sft", "rm"))])
def test_a_resumed_run_logs_line_by_line_what_a_whole_one_does(chain, monkeypatch, stage):
    keys = {f"{stage}__{key}": value for key, value in {"max_steps": 7, "logging_steps": 3, "save_steps": 2}.items()}
    keys |= {f"{stage}__eval_steps": 3, f"{stage}__eval_batch_size": 8}
    run = Path(chain(**keys).output_dir)
    run_stage(chain(**keys), stage, fresh=True)
    expected, model = lines(run, stage), weights(run, stage)
    assert "train_loss" in expected[-1]
    from align.trainers.supervised import SupervisedTrainer

    plain = SupervisedTrainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise SystemExit("killed")
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(SupervisedTrainer, "training_step", killed)
    with pytest.raises(SystemExit):
        run_stage(chain(**keys), stage, fresh=True)
    monkeypatch.undo()
    assert run_stage(chain(**keys), stage)["resumed_from"] == 4
    assert lines(run, stage) == expected and weights(run, stage) == model
    (run / stage / "summary.json").unlink()  # as a kill after the last step leaves it
    assert run_stage(chain(**keys), stage)["resumed_from"] == 7
    assert lines(run, stage) == expected and weights(run, stage) == model


@pytest.mark.slow
def test_plain_fresh_lists_what_it_would_remove_and_wants_a_yes(chain, monkeypatch, capsys):
    recipe = chain()
    run = Path(recipe.output_dir)
    before, file = written(run), run.parent / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    words = ["run", str(file), "--fresh"]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "this removes base (finished), sft (finished), pmp (finished), rm (finished)" in said
    assert "--yes" in said and "Traceback" not in said and written(run) == before
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "align.cli", *words]
    streams = {"stdin": theirs, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    asked = subprocess.Popen(command, env=INSTALLED, text=True, **streams)
    os.write(terminal, b"n\n")
    out, err = asked.communicate(timeout=60)
    assert asked.returncode == 1 and "Go on? [y/N]" in out and "nothing was removed" in err and written(run) == before
    for descriptor in (terminal, theirs):
        os.close(descriptor)


@pytest.mark.slow
def test_the_best_model_of_a_finished_stage_is_what_a_longer_run_has_to_beat(chain):
    keys = {"sft__keep_best": True, "sft__eval_steps": 1, "sft__learning_rate": 3.0}
    first = run_stage(chain(**keys), "sft", fresh=True)
    again = run_stage(chain(**keys, sft__max_steps=6), "sft")
    assert (again["resumed_from"], again["steps"]) == (4, 6)
    assert again["best_heldout_loss"] <= first["best_heldout_loss"]
    if again["best_step"] <= 4:
        assert (again["best_step"], again["end_rate"]) == (first["best_step"], first["end_rate"])


def test_accepting_ends_with_its_block():
    from align.runs.acceptance import is_accepted

    with accepting(["ppo.reward", "sft.data"]):
        assert is_accepted("ppo.reward.0.pattern") and is_accepted("sft.data")
        assert not is_accepted("ppo.rewards") and not is_accepted("sft")
    assert not is_accepted("sft.data")
