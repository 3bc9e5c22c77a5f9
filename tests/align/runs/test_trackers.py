"""What goes to trackers is what metrics.jsonl holds, once; a tracker that fails harms nothing."""

import json
import logging
from types import SimpleNamespace
from typing import ClassVar

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, on_main_process
from transformers import TrainerCallback

from align.runs import trackers
from align.runs.trackers import Trackers, closing_trackers
from align.stages.chain import run_stage
from align.stages.clean import clear_stages
from tests.align.stages import sft_case, test_ppo

NOT_FIGURES = {"step", "time"}


class Kept(GeneralTracker):
    """Keeps what it is sent, of every run that was begun."""

    name, requires_logging_directory = "wandb", False
    runs: ClassVar[list] = []

    def __init__(self, project, /, **options):
        super().__init__()
        self.options, self.sent, self.ended = {"project": project, **options}, [], False

    @property
    def tracker(self):
        return self

    @on_main_process
    def start(self):
        assert all(run.ended for run in self.runs)
        self.runs.append(self)

    @on_main_process
    def store_init_configuration(self, values):
        self.configuration = values

    @on_main_process
    def log(self, values, step=None, **kwargs):
        self.sent.append((step, values))

    @on_main_process
    def finish(self):
        self.ended = True


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Kept)
    monkeypatch.setattr(Kept, "runs", [])
    return Kept.runs


def figures(lines):
    """(step, name) -> value of every number in metrics.jsonl."""
    return {
        (line["step"], name): value
        for line in lines
        for name, value in line.items()
        if name not in NOT_FIGURES and isinstance(value, int | float)
    }


def sent(runs):
    """The same of what trackers were sent; no step twice."""
    found = [((step, name), value) for run in runs for step, values in run.sent for name, value in values.items()]
    assert len(dict(found)) == len(found)
    return dict(found)


class Fails(TrainerCallback):
    """At step 5, once."""

    failed = False

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5 and not Fails.failed:
            Fails.failed = True
            raise RuntimeError("at step 5")


def stopped_and_gone_on(tmp_path, monkeypatch, tracker, **keys):
    """The recipe and the lines of metrics.jsonl of a stage that failed at step 5 and was run again."""
    monkeypatch.setattr(Fails, "failed", False)
    keys = {"eval_steps": 2, "save_steps": 3, "callbacks": f"{__name__}:Fails"} | keys
    recipe = sft_case.recipe(tmp_path, **keys).model_copy(update={"report_to": (tracker,)})
    with pytest.raises(RuntimeError, match="at step 5"):
        run_stage(recipe, "sft")
    run_stage(recipe, "sft")
    return recipe, sft_case.lines(tmp_path / "run/sft/metrics.jsonl")


def test_a_stopped_stage_goes_on_in_its_run_and_sends_nothing_twice(tmp_path, runs, monkeypatch):
    recipe, lines = stopped_and_gone_on(tmp_path, monkeypatch, "wandb", eval_num_replies=2)
    assert sent(runs).keys() == figures(lines).keys()
    steady = [key for key in figures(lines) if not key[1].endswith(("_runtime", "_per_second"))]
    assert all(sent(runs)[key] == figures(lines)[key] for key in steady)
    first, second = (run.options for run in runs)
    assert first == second and first["group"] == "run" and first["name"] == "sft" and first["project"] == "sft"
    assert runs[0].configuration["sft.learning_rate"] == 0.01 and all(run.ended for run in runs)
    assert (tmp_path / "run/sft/trackers.json").is_file()
    clear_stages(recipe, ("sft",))  # anew, it is another run
    assert not (tmp_path / "run/sft/trackers.json").exists()


@pytest.mark.slow
def test_ppo_sends_the_same_way(tmp_path, runs):
    recipe = test_ppo.recipe(tmp_path, num_iterations=2).model_copy(update={"report_to": ("wandb",)})
    run_stage(recipe, "ppo")
    assert sent(runs) == figures(sft_case.lines(tmp_path / "run/ppo/metrics.jsonl")) and runs[0].ended


def test_a_run_of_mlflow_goes_on_with_what_it_was_begun_with(tmp_path, runs, monkeypatch):
    class OfMLflow(Kept):
        name, info = "mlflow", SimpleNamespace(run_id="first")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", OfMLflow)
    for steps in (6, 9):  # made longer: MLflow refuses to change a parameter
        recipe = sft_case.recipe(tmp_path, max_steps=steps).model_copy(update={"report_to": ("mlflow",)})
        with closing_trackers():
            Trackers(recipe, tmp_path / "run" / "sft").send(steps, {"loss": 1.0})
    first, second = runs
    assert second.options["run_id"] == "first" and second.sent == [(9, {"loss": 1.0})]
    assert first.configuration["sft.max_steps"] == 6 and not hasattr(second, "configuration")


class Told(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_left_out_after_one_warning(tmp_path, runs, where, monkeypatch):
    def fails(self, *args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(Kept, where, fails)
    monkeypatch.setattr(trackers.LOG, "handlers", [Told()])
    recipe = sft_case.recipe(tmp_path).model_copy(update={"report_to": ("wandb",)})
    with closing_trackers():
        sending = Trackers(recipe, tmp_path / "run" / "sft")
        for step in (1, 2, 3):
            sending.send(step, {"loss": 1.0})
    told = [record.getMessage() for record in trackers.LOG.handlers[0].records]
    assert len(told) == 1 and told[0].startswith("report_to: wandb failed and is left out; training goes on")
    assert "OSError: no route to host" in told[0]


@pytest.mark.needs("tensorboard")
def test_the_files_of_tensorboard_hold_the_figures(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, lines = stopped_and_gone_on(tmp_path, monkeypatch, "tensorboard", eval_num_replies=0)
    events = EventAccumulator(str(tmp_path / "run/tensorboard/sft")).Reload()
    scalars = [(event.step, name, event.value) for name in events.Tags()["scalars"] for event in events.Scalars(name)]
    found = {(step, name): value for step, name, value in scalars}
    assert len(found) == len(scalars) and found.keys() == figures(lines).keys()
    steady = [key for key in found if not key[1].endswith(("_runtime", "_per_second"))]
    assert [found[key] for key in steady] == pytest.approx([figures(lines)[key] for key in steady], rel=1e-6)
    assert json.loads((tmp_path / "run/sft/trackers.json").read_text())["begun"]
