"""metrics.jsonl"""

import json
import time

import numpy
import pytest
import torch

from align.runs.metrics import MetricsLog


def test_lines_hold_step_time_and_plain_numbers(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.append({"loss": torch.tensor(0.5), "count": numpy.int64(3), "step": 10, "bad": float("nan"), "list": [1.5]})
    log.append({"step": 20, "time": 7.5, "text": "好"})
    first, second = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    line = json.loads(first)
    assert list(line) == ["step", "time", "loss", "count", "bad", "list"]
    assert abs(line.pop("time") - time.time()) < 60
    assert line == {"step": 10, "loss": 0.5, "count": 3, "bad": None, "list": [1.5]}
    assert second == '{"step": 20, "time": 7.5, "text": "好"}'


def test_keep_until_drops_later_lines_and_half_ones(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        log.append({"step": step, "time": 0})
    log.append({"step": 2, "time": 1, "eval_loss": 1 / 3})
    with open(log.path, "a") as file:
        file.write('{"step": 2, "lo')
    log.keep_until(2)
    assert log.path.read_text() == (
        '{"step": 1, "time": 0}\n{"step": 2, "time": 0}\n{"step": 2, "time": 1, "eval_loss": 0.3333333333333333}\n'
    )
    log.keep_until(0)
    assert log.path.read_text() == ""


def test_lines_written_after_the_checkpoint_of_their_step_are_dropped(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    for step, name in ((1, "loss"), (2, "loss"), (2, "eval_loss"), (2, "train_runtime")):
        log.append({"step": step, "time": 0, name: 1})
    log.keep_until(2, at_step=2)
    assert [(line["step"], *line.keys() - {"step", "time"}) for line in log.read()] == [
        (1, "loss"),
        (2, "loss"),
        (2, "eval_loss"),
    ]
    log.keep_until(2, at_step=0)
    assert [line["step"] for line in log.read()] == [1]


def test_half_a_line_does_not_spoil_the_next(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.path.write_text('{"step": 1}\n{"step": 2, "lo')
    log.append({"step": 3, "time": 0})
    assert log.read() == [{"step": 1}, {"step": 3, "time": 0}]


def test_other_ranks_write_nothing(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl", enabled=False)
    log.append({"step": 1})
    log.keep_until(0)
    assert log.read() == [] and list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path):
    full = "/dev/full"
    from align.runtime.errors import StorageError

    with pytest.raises(StorageError, match=r"cannot append to /dev/full: No space left on device"):
        MetricsLog(full).append({"step": 1})
