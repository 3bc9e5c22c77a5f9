"""Code of the user's own that a recipe names: callbacks, trainers, reward functions."""

import pytest

from align.recipe.check import run_problems
from align.runs.errors import TrainingError
from align.runtime.errors import MissingFileError
from align.stages import chain
from align.stages.chain import run_stage
from align.stages.recipe_guard import changed_code
from align.stages.user_code import UserCodeError, own_callbacks
from tests.align.stages import sft_case

MINE = """
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from align import RewardTrainer, SFTTrainer


class Counts(TrainerCallback, ExportableState):
    def __init__(self):
        self.seen = 0

    def state(self):
        return {"args": {}, "attributes": {"seen": self.seen}}

    def on_step_end(self, args, state, control, **kwargs):
        self.seen += 1
        file = Path(args.output_dir, "fail")
        if file.exists() and state.global_step == 4:
            file.unlink()
            raise RuntimeError("of the user")
        Path(args.output_dir, "seen").write_text(f"{self.seen} of {state.global_step}")


class Stops(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == 2


class Faint(SFTTrainer):
    def mean_over_step(self, *args):
        return super().mean_over_step(*args) / 1000


class OfPairs(RewardTrainer):
    pass


class Asks(TrainerCallback):
    def __init__(self, what):
        pass


def plain(prompts, completions):
    return [0.0] * len(completions)
"""


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    return file


def metrics(recipe):
    return sft_case.lines(sft_case.Path(recipe.output_dir) / "sft" / "metrics.jsonl")


def test_a_callback_goes_on_with_its_state_and_a_trainer_takes_the_place_of_ours(tmp_path, mine):
    keys = {"callbacks": [f"{mine}:Counts"], "save_steps": 2, "eval_num_replies": 0}
    recipe = sft_case.recipe(tmp_path, **keys, trainer=f"{mine}:Faint")
    folder = tmp_path / "run" / "sft"
    folder.mkdir(parents=True)
    (folder / "fail").touch()
    with pytest.raises(RuntimeError, match="of the user"):
        run_stage(recipe, "sft")
    assert not (folder / "fail").exists()
    summary = run_stage(recipe, "sft")
    assert summary["resumed_from"] == 2 and "stopped_early" not in summary
    assert (folder / "seen").read_text() == "6 of 6"
    assert summary["epochs"] == 2.0 and metrics(recipe)[0]["loss"] < 0.02


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("trainer", "OfPairs", "OfPairs must be a subclass of align.trainers.sft.SFTTrainer, which trains this stage"),
        ("trainer", "plain", "must be a subclass of align.trainers.sft.SFTTrainer"),
        ("callbacks", "Faint", "Faint must be a subclass of transformers.TrainerCallback"),
        ("callbacks", "Asks", "Asks could not be made without arguments (TypeError: "),
    ],
)
def test_code_of_another_kind_is_refused(tmp_path, mine, key, name, words):
    with pytest.raises(UserCodeError) as refused:
        run_stage(sft_case.recipe(tmp_path, **{key: f"{mine}:{name}"}), "sft")
    assert str(refused.value).startswith(f"sft.{key}") and words in str(refused.value)


def test_what_check_can_tell_without_running_it(tmp_path, mine):
    def told(**keys):
        return run_problems(sft_case.recipe(tmp_path, **keys), ["sft"])

    assert told(callbacks=[f"{mine}:Counts", "transformers:EarlyStoppingCallback"], trainer=f"{mine}:Faint") == []
    assert told(trainer=f"{mine}:Fant") == [f"sft.trainer: {mine} has no 'Fant'"]
    assert told(callbacks=["gone.py:X"]) == ["sft.callbacks.0: no such file gone.py"]
    assert told(callbacks=["nobody_has_this.at:X"])[0].startswith("sft.callbacks.0: there is no package")
    mine.unlink()
    with pytest.raises(MissingFileError, match=r"sft\.callbacks\.0: no such file"):
        own_callbacks(sft_case.recipe(tmp_path, callbacks=[f"{mine}:Counts"]).sft, "sft")


def test_a_callback_ends_the_stage_well_and_when_its_file_changes_nothing_is_thrown_away(tmp_path, mine, monkeypatch):
    told = []
    monkeypatch.setattr(chain.LOG, "warning", lambda words, *values: told.append(words % values))
    recipe = sft_case.recipe(tmp_path, callbacks=f"{mine}:Stops", eval_num_replies=0)
    first, folder = run_stage(recipe, "sft"), tmp_path / "run" / "sft"
    assert first["steps"] == 2 and first["stopped_early"] == "a callback ended it; step 2 of 6"
    assert (folder / "model").is_dir()
    assert run_stage(recipe, "sft") == first and told == []
    mine.write_text(MINE.replace("== 2", "== 3"))
    assert run_stage(recipe, "sft") == first
    (words,) = told
    assert words.startswith("sft: another file than it was begun with, sft.callbacks.0 was mine.py:Stops of ")
    assert words.endswith(": kept as it was made (--fresh sft makes it anew)")
    for name in ("summary.json", "model/config.json"):
        (folder / name).unlink()
    (folder / "model").rename(tmp_path / "away")
    again = run_stage(recipe, "sft")  # as one that was stopped
    assert again["steps"] == 3 and again["accepted"][0]["key"] == "sft.callbacks.0"
    assert told[1].endswith(": goes on with it") and changed_code(recipe, "sft") == []


def test_an_early_end_is_found_again(tmp_path):
    keys = {"eval_steps": 1, "save_steps": 1, "eval_num_replies": 0}
    keys["early_stopping"] = {"patience": 2, "min_delta": 50.0}
    recipe = sft_case.recipe(tmp_path, **keys)
    folder = tmp_path / "run" / "sft"
    whole = run_stage(recipe, "sft")
    assert whole["steps"] == 3 and whole["stopped_early"].startswith("eval_loss has not become better than ")
    assert whole["stopped_early"].endswith(" (step 1) in 2 evaluations; step 3 of 6")
    written = [{key: value for key, value in line.items() if key != "time"} for line in metrics(recipe)]
    for name in ("summary.json", "trained.json"):
        (folder / name).unlink(missing_ok=True)
    again = run_stage(recipe, "sft")  # killed before the model was saved: no step more
    assert again["stopped_early"] == whole["stopped_early"] and again["heldout_loss"] == whole["heldout_loss"]
    left = [{key: value for key, value in line.items() if key != "time"} for line in metrics(recipe)]
    figures = ("eval_loss", "loss", "train_loss")
    assert [[line.get(name) for name in figures] for line in left] == [
        [line.get(name) for name in figures] for line in written
    ]
    wrong = sft_case.recipe(tmp_path, run="wrong", **keys | {"early_stopping": {"patience": 1, "metric": "eval_lss"}})
    with pytest.raises(TrainingError, match=r"no evaluation logs 'eval_lss'; they log .*eval_loss"):
        run_stage(wrong, "sft")
