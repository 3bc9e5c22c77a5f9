"""What the user sees."""

import io

import pytest

from align.runs import progress
from align.runs.progress import StageProgress, format_figure, format_figures, format_seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (1e-05, "1e-05"),
        (12345.678, "1.235e+04"),
        (3, "3"),
        (123456, "123456"),
        (0.0, "0"),
        (True, "True"),
        (float("nan"), "nan"),
        ("best", "best"),
    ],
)
def test_figures(value, text):
    assert format_figure(value) == text


def test_figures_and_times_in_words():
    assert format_figures({"loss": 0.51234, "gold": 1}) == "loss 0.5123  gold 1"
    assert [format_seconds(seconds) for seconds in (0.4, 59.6, 125, 3725)] == ["0s", "1:00", "2:05", "1:02:05"]


def test_plain_lines_come_seldom_and_at_the_end(clock):
    stream = io.StringIO()
    with StageProgress("ppo", 40, interval=5, stream=stream) as shown:
        for step in range(1, 13):
            clock.now += 1
            shown.update(step, loss=1 / step)
    assert stream.getvalue().splitlines() == [
        "ppo  5/40 (12%)  took 5s, left 35s  loss 0.2",
        "ppo  10/40 (25%)  took 10s, left 30s  loss 0.1",
        "ppo  12/40 (30%)  took 12s, left 28s  loss 0.08333",
    ]


def test_a_resumed_stage_reckons_with_its_own_steps(clock):
    shown = StageProgress("sft", 100, start=90, stream=io.StringIO()).__enter__()
    clock.now += 10
    shown.update(95)
    assert shown.describe() == "sft  95/100 (95%)  took 10s, left 10s"


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    with StageProgress("sft", 4, epochs=1.6, stream=stream) as shown:
        shown.update(2, loss=0.25)
        shown.update(3)
    text = stream.getvalue()
    assert "sft" in text and "3/4" in text and "epoch 1.2/1.6" in text and "loss 0.25" in text and "━" in text


def test_other_ranks_are_silent():
    stream = io.StringIO()
    with StageProgress("sft", 4, enabled=False, stream=stream) as shown:
        shown.update(4, loss=0.25)
    assert stream.getvalue() == ""
