"""The callbacks on a real transformers Trainer."""

import io
import json
import math
import os
import signal

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from align.runs.callbacks import attach, stage_callbacks
from align.runs.errors import TrainingError
from align.runs.interrupt import StopFlag

START = 0.5


class Line(nn.Module):
    """loss = mean((weight * x - 1)^2)"""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(START))

    def forward(self, x, labels=None):
        return {"loss": ((self.weight * x - 1) ** 2).mean()}


class At(TrainerCallback):
    """Does something when a step begins."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.action()


def make(folder, values=(1.0,) * 6, **arguments):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 1,
        "learning_rate": 0.125,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "num_train_epochs": 1,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.0,
    }
    rows = [{"x": torch.tensor(value)} for value in values]
    return Trainer(Line(), TrainingArguments(**settings | arguments), train_dataset=rows)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_and_progress(tmp_path, capsys):
    trainer, stream = make(tmp_path), io.StringIO()
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 9}\n')  # of an earlier run
    attach(trainer, "toy", tmp_path, stream=stream, interval=0.0)
    trainer.train()
    rows = lines(tmp_path)
    # The error shrinks from 0.5 by the factor 1 - 2 * 0.125 = 0.75 a step; a log holds the mean loss of two steps.
    errors = [0.5 * 0.75**step for step in range(6)]
    expected = [(errors[at] ** 2 + errors[at + 1] ** 2) / 2 for at in (0, 2, 4)]
    assert [row["loss"] for row in rows[:3]] == pytest.approx(expected)
    assert [row["step"] for row in rows[:3]] == [2, 4, 6]
    assert all(list(row)[:2] == ["step", "time"] for row in rows)
    assert "train_runtime" in rows[-1]
    shown = stream.getvalue().splitlines()
    assert shown[0].startswith("toy  1/6 (16%)") and shown[-1].startswith("toy  6/6 (100%)")
    assert "loss 0.0" in shown[-1] and "epoch" not in shown[-1] and "train_runtime" not in shown[-1]
    assert capsys.readouterr().out == ""  # transformers' own printing is off


def test_a_run_that_ends_a_second_time_writes_its_last_lines_once(tmp_path):
    """As after a kill between the end of training and the end of the stage."""
    for _ in range(2):
        trainer = make(tmp_path, save_strategy="steps", save_steps=6)
        attach(trainer, "toy", tmp_path, stream=io.StringIO())
        trainer.train(resume_from_checkpoint=(tmp_path / "checkpoint-6").is_dir() or None)
    assert [(line["step"], "train_runtime" in line) for line in lines(tmp_path)] == [
        (2, False),
        (4, False),
        (6, False),
        (6, True),
    ]


def test_ctrl_c_saves_and_stops_and_the_run_goes_on_from_there(tmp_path):
    trainer = make(tmp_path, save_strategy="steps", save_steps=100)
    with StopFlag() as flag:
        attach(trainer, "toy", tmp_path, flag, stream=io.StringIO())
        trainer.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGINT)))
        trainer.train()
        assert flag.is_set()
    assert trainer.state.global_step == 3 and (tmp_path / "checkpoint-3").is_dir()
    whole = make(tmp_path / "whole")
    whole.train()
    again = make(tmp_path, save_strategy="steps", save_steps=100)
    attach(again, "toy", tmp_path, stream=io.StringIO())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.global_step == 6
    assert torch.equal(again.model.weight, whole.model.weight)
    assert [row["step"] for row in lines(tmp_path) if "loss" in row] == [2, 4, 6]


@pytest.mark.parametrize(("bad", "clip"), [(math.nan, 0.0), (math.inf, 0.0), (math.nan, 1.0)])
def test_a_broken_gradient_ends_training_before_the_weights_take_it(tmp_path, bad, clip):
    trainer = make(tmp_path, values=(1.0, 1.0, bad, 1.0), max_grad_norm=clip)
    flag = StopFlag()
    with pytest.raises(TrainingError, match=r"gradient of step 3 is not finite; the state before it is saved"), flag:
        attach(trainer, "toy", tmp_path, flag, stream=io.StringIO())
        trainer.train()
    assert trainer.model.weight.item() == pytest.approx(1 - 0.5 * 0.75**2)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert torch.equal(saved["weight"], trainer.model.weight)
    assert json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2


def test_a_loss_that_breaks_without_its_gradient_is_seen_at_the_next_log(tmp_path):
    class Broken(Line):
        def forward(self, x, labels=None):
            loss = super().forward(x)["loss"]
            return {"loss": loss + (math.nan if x.item() == 2 else 0.0)}

    trainer = make(tmp_path, values=(1.0, 2.0, 1.0, 1.0))
    trainer.model = trainer.model_wrapped = Broken()
    attach(trainer, "toy", tmp_path, stream=io.StringIO())
    with pytest.raises(TrainingError, match="loss of step 2 is not finite"):
        trainer.train()
    assert lines(tmp_path)[-1]["loss"] is None


def test_the_bar_ends_when_training_fails(tmp_path):
    flag, stream = StopFlag(), io.StringIO()
    trainer = make(tmp_path, values=(1.0, math.nan))
    with pytest.raises(TrainingError), flag:
        for callback in stage_callbacks("toy", tmp_path, flag, stream=stream):
            trainer.add_callback(callback)
        trainer.train()
    assert stream.getvalue().startswith("toy  1/2")


def test_trainers_that_write_their_metrics_themselves(tmp_path):
    trainer = make(tmp_path)
    for callback in stage_callbacks("toy", tmp_path, metrics=False, figures=("grad_norm",), stream=io.StringIO()):
        trainer.add_callback(callback)
    trainer.train()
    assert not (tmp_path / "metrics.jsonl").exists()
