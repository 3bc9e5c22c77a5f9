"""A run in progress, read as its files grow."""

import json
import time

import pytest

from align.report.braille import columns, plot
from align.report.live import (
    NEWEST,
    TAIL,
    GrowingLines,
    LiveRun,
    curves_of,
    reply_of,
    seconds_a_step,
    total_steps,
)
from align.runs.metrics import MetricsLog
from align.runs.run_files import StageFiles
from tests.align.report.synthetic_run import make_run, write
from tests.align.report.test_build import NONSENSE


def test_a_half_written_line_waits_for_its_other_half(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = GrowingLines(path)
    assert lines.read() == []
    path.write_bytes(b'{"step": 1}\n{"st')
    assert lines.read() == [{"step": 1}]
    with open(path, "ab") as file:
        file.write('ep": 2, "x": "知'.encode()[:-1])
    assert lines.read() == [{"step": 1}]
    with open(path, "ab") as file:
        file.write("知".encode()[-1:] + b'"}\n[1]\n{torn\n')
    assert lines.read() == [{"step": 1}, {"step": 2, "x": "知"}]


def test_a_file_that_is_written_anew_is_read_anew(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    lines = GrowingLines(log.path)
    for step in (1, 2, 3):
        log.append({"step": step, "time": 0})
    assert len(lines.read()) == 3
    log.keep_until(1)  # as a run that resumes does
    log.append({"step": 2, "time": 5})
    assert [(row["step"], row["time"]) for row in lines.read()] == [(1, 0), (2, 5)]
    log.path.write_text("")
    assert lines.read() == []
    log.path.unlink()
    assert lines.read() == []


def test_of_a_long_file_its_end_is_read(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps({"at": at, "reply": "x" * 1000}) + "\n" for at in range(2 * TAIL // 1000)))
    lines = GrowingLines(path, NEWEST)
    last = 2 * TAIL // 1000 - 1
    assert [row["at"] for row in lines.read()] == list(range(last - NEWEST + 1, last + 1))
    with open(path, "a") as file:
        file.write('{"at": "new"}\n')
    assert [row["at"] for row in lines.read()][-2:] == [last, "new"]


def test_what_a_run_shows(tmp_path):
    root = make_run(tmp_path / "quickstart", prompts=2, iterations=12, pairs=3)
    found = LiveRun(root).look()
    assert (found.name, found.stage, found.step, found.total) == ("quickstart", "ppo", 12, None)
    assert found.finished == ["base", "sft", "pmp", "rm", "ppo"] and found.waiting == [] and found.done
    assert list(found.curves)[:4] == ["reward", "reward, held out", "KL, nats a reply", "entropy, nats a token"]
    assert found.replies[0].reply == "It is 4." and found.replies[0].notes == ["step 12", "score 1.2", "kl 3"]
    stage = LiveRun(root / "sft").look()
    assert (stage.stage, stage.finished, stage.done, stage.step) == ("sft", ["sft"], True, 250)
    assert list(stage.curves) == ["loss", "loss, held out", "gradient norm"]


def test_the_stage_that_wrote_last_is_shown(tmp_path):
    root = make_run(tmp_path / "run", prompts=2, iterations=3, pairs=3)
    for stage in ("rm", "ppo"):
        for path in (root / stage).iterdir():
            path.unlink()
    run = LiveRun(root)
    write(root / "rm/recipe.yaml", "name: x\nrm: {max_steps: 7}\nppo: {num_iterations: 3}\n")
    found = run.look()
    assert (found.stage, found.step, found.total, found.curves, found.done) == ("rm", 0, 7, {}, False)
    assert found.finished == ["base", "sft", "pmp"] and found.waiting == ["ppo"]
    write(root / "rm/metrics.jsonl", [{"step": 5, "time": time.time(), "loss": 0.5, "accuracy": 0.75}])
    assert list(run.look().curves) == ["loss", "accuracy"]
    write(root / "rm/summary.json", {"accuracy": 0.8})
    assert not run.look().done  # ppo is to come
    write(root / "ppo/metrics.jsonl", [{"step": 1, "score/mean": 0.5, "score/rule/mean": 1.0, "eval/win_rate": 0.5}])
    write(root / "ppo/recipe.yaml", "ppo: {num_iterations: 3}\n")
    found = run.look()
    assert (found.stage, found.total) == ("ppo", 3)
    assert list(found.curves) == ["reward", "reward: rule", "win rate, held out"]


def test_a_run_that_has_not_begun(tmp_path):
    assert LiveRun(tmp_path / "later").look().stage == ""
    run = LiveRun(tmp_path / "later")
    write(tmp_path / "later/sft/metrics.jsonl", [{"step": 1, "loss": 1.0}])
    assert run.look().stage == "sft"


def test_of_a_copied_run_the_stage_that_logged_last_is_at_work(tmp_path):
    """Files that were copied were all written at once, or in any order."""
    for stage, when in (("ppo", 30.0), ("rm", 20.0), ("sft", 10.0)):
        write(tmp_path / f"run/{stage}/metrics.jsonl", [{"step": 1, "time": when, "loss": 1.0}])
    assert LiveRun(tmp_path / "run").look().stage == "ppo"


def test_how_far_it_is_and_how_fast():
    rows = [{"step": 10 * at, "time": 100.0 + 5 * at, "epoch": 0.25 * at} for at in range(1, 5)]
    rows[2]["time"] += 1000  # a pause
    assert seconds_a_step(rows[:2]) == 0.5 and seconds_a_step(rows[:1]) is None
    assert total_steps(StageFiles("sft", metrics=rows), {"sft": {"num_train_epochs": 3, "max_steps": None}}) == 120
    assert total_steps(StageFiles("sft", metrics=rows), {"sft": {"num_train_epochs": 3, "max_steps": 50}}) == 50
    assert total_steps(StageFiles("sft"), {"sft": "torn"}) is None


def test_single_points_give_way_to_curves():
    once = [{"step": 1, "score/mean": 1.0, "eval/score": 2.0}]
    assert list(curves_of(StageFiles("ppo", metrics=once))) == ["reward", "reward, held out"]
    assert list(curves_of(StageFiles("ppo", metrics=[*once, {"step": 2, "score/mean": 1.5}]))) == ["reward"]


def test_replies_and_pairs():
    pair = reply_of(
        {"prompt": [{"role": "user", "content": "a\nb"}], "chosen": "c", "rejected": "d", "chosen_score": 1}
    )
    assert (pair.prompt, pair.reply, pair.notes) == ("a b", "c | d", ["chosen score 1"])
    assert reply_of({"prompt": "p", "reply": "r", "finished": False}).notes == ["cut off"]
    assert reply_of({"prompt": "p"}) is None


@pytest.mark.parametrize("value", NONSENSE)
def test_nonsense_is_left_out(tmp_path, value):
    root = make_run(tmp_path / "run", prompts=2, iterations=2, pairs=2)
    for path in (*root.glob("*/summary.json"), *root.glob("*/samples.jsonl"), *root.glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(dict.fromkeys(row, value)) + "\n" for row in rows))
    for path in root.glob("*/recipe.yaml"):
        path.write_text(json.dumps(value))
    LiveRun(root).look()


def test_a_curve_in_dots():
    rising = ([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0])
    assert columns(rising, 4) == [0, 1, 2, 3] and columns(rising, 2) == [0.5, 2.5]
    assert plot(rising, 2, 1) == ["⡠⠊"]  # from the lowest dot on the left to the highest on the right
    assert plot(([0.0, 1.0], [1.0, 0.0]), 1, 1) == ["⢣"]
    assert plot(([5.0], [2.0]), 3, 1) == ["⠄⠀⠀"]
    assert [len(line) for line in plot(rising, 7, 3)] == [7, 7, 7]
    assert plot(rising, 4, 3, plain=True) == ["_-+#"]
