"""The study of judgments, without what it trains: its tables, and what it reads off them."""

from types import SimpleNamespace

import pytest

from align.feedback.error_rates import ErrorRate
from align.runtime.files import write_json
from examples.experiments import feedback


def test_the_number_of_judgments_is_read_off_the_lines():
    assert feedback.reached([0, 100, 200], [0.5, 0.6, 0.8], 0.7) == pytest.approx(150)
    assert feedback.reached([0, 100, 200], [0.5, 0.6, 0.65], 0.7) is None
    assert feedback.reached([0, 100, 200], [0.5, 0.7, 0.6], 0.7) == pytest.approx(100)


def run_of(gain):
    """Four batches of one training, each `gain` better than the one before."""
    told = {"gain": 0.02, "gain_error": 0.01, "seen": 100}
    counts = [{"judgments": 250 * at, "comparisons": 200 * at} for at in range(1, 5)]
    return [
        row | {"accuracy": 0.7 + gain * at, "promised": told if at > 1 else None} for at, row in enumerate(counts, 1)
    ]


def test_tables_of_choices_and_promises(monkeypatch):
    gains = {"random": 0.01, "uncertain": 0.02, "diverse": 0.005}
    monkeypatch.setattr(feedback, "learn", lambda world, how, at: run_of(gains[how] * (1 + at)))
    worlds = [SimpleNamespace(start=0.7), SimpleNamespace(start=0.7)]
    head, _, random, uncertain, diverse = feedback.choices_table(worlds, 2)
    assert head == "| --choose | 0 | 250 | 500 | 750 | 1000 | comparisons of them | judgments to 76.0 % |"
    assert random.startswith("| random | 70.0 | 71.5 ± 0.3 |") and random.endswith("| 80 % | 1000 (100 %) |")
    assert uncertain.endswith("| 500 (50 %) |") and diverse.endswith("| more than 1000 |")
    lines = list(feedback.promises_table(worlds, 2))
    assert lines[2] == "| random | 0 to 250 | +1.5 ± 0.3 | 167 |  |  |"
    assert lines[3] == "| random | 250 to 500 | +1.5 ± 0.3 | 167 | +2.0 | 1.0 |"


def test_the_table_of_errors(tmp_path):
    found = [vars_of(ErrorRate(0.1 + 0.01 * at, 0.1, 0.13, 0.02, 900)) for at in (0, 2)]
    rows = [
        {"team": "two", "pairs": size, "annotator": "a", "wrong": 0.1, "position": 0.0, "found": found}
        for size in feedback.CHUNKS
    ]
    write_json(tmp_path / "errors.json", {"rows": rows})
    *_, line = feedback.errors_table([SimpleNamespace(out=tmp_path)])
    assert line == f"| two | 10.0 |{' 11.0 ± 1.0 (100 %) |' * 3} 100 % | 0 | 2.0 ± 0.0 |"


def vars_of(rate):
    return {name: getattr(rate, name) for name in ErrorRate.__slots__}


def test_a_run_that_is_not_there(tmp_path, capsys):
    assert feedback.main([str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "holds no finished chain" in capsys.readouterr().err
