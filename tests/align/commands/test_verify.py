"""`align data verify` as a user types it."""

import json

import pytest

from align import cli
from align.commands import verify
from reward.unit_tests import UnitTests
from tests.align.commands.test_data import write
from tests.sandboxes import require


def row(code, **tests):
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": code}], **tests}


TESTS = ["assert f(1) == 1", "assert f(2) == 2"]
ROWS = (
    row("```python\ndef f(x):\n    return x\n```", tests=TESTS),
    row("def f(x): return 1", tests=TESTS),
    row("def f(x: return", tests=TESTS),
    row("def f(x): return missing  # noqa", tests=TESTS),
    row("def f(x): return x"),
    row("no code: at all"),
)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def data(*words):
    return cli.main(["data", "verify", *map(str, words), "--isolation", "best"])


def test_what_passes_is_kept_and_the_rest_says_why(tmp_path, capsys):
    require()
    path, out = write(tmp_path / "rows.jsonl", *ROWS), tmp_path / "out.jsonl"
    assert data(path, out) == 0
    (kept,), failed = lines(out), lines(tmp_path / "out.failed.jsonl")
    verified = {"passed": 2, "total": 2, "score": 1.0, "reason": ""}
    assert kept == ROWS[0] | {"verified": verified}
    told = [(one["row"], one["verified"]["reason"], one["verified"]["score"]) for one in failed]
    assert told == [
        (2, "wrong", 0.5),
        (3, "syntax_error", 0.0),
        (4, "exception", 0.0),
        (5, "no_tests", None),
        (6, "syntax_error", None),
    ]
    said = capsys.readouterr().out
    assert "1 of 6 demonstrations kept" in said and "3 of 8 tests passed" in said
    assert "row 4: NameError: name 'missing' is not defined" in said and "2 failed, syntax error" in said
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.failed.jsonl", "out.jsonl", "rows.jsonl"]
    assert data(path, out) == 1 and "exists already" in capsys.readouterr().err
    assert data(out, tmp_path / "again.jsonl", "--json") == 0  # what is written can be verified again
    assert json.loads(capsys.readouterr().out)["kept"] == 1


@pytest.mark.needs("ruff")
def test_options(tmp_path, capsys):
    require()
    path, out = write(tmp_path / "rows.jsonl", *ROWS), tmp_path / "out.jsonl"
    assert data(path, out, "--threshold", "0.5", "--keep-untested", "--lint", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["kept"] == 3 and figures["failed"] == {"lint": 3}  # an undefined name, and two that are no Python
    assert {one["verified"]["why"].partition(":")[0] for one in lines(tmp_path / "out.failed.jsonl")} >= {"F821"}


def test_a_command_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    require()
    monkeypatch.setattr(verify, "AT_ONCE", 2)
    path, out, results, calls = write(tmp_path / "rows.jsonl", *ROWS), tmp_path / "out.jsonl", UnitTests.results, []

    def stopped(self, samples):
        calls.append(len(samples))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return results(self, samples)

    monkeypatch.setattr(UnitTests, "results", stopped)
    assert data(path, out) != 0 and not out.exists() and len(list((tmp_path / "out.jsonl.pieces").glob("*.jsonl"))) == 1
    assert data(path, out) == 0 and calls == [2, 2, 2, 2]
    assert len(lines(out)) == 1 and len(lines(tmp_path / "out.failed.jsonl")) == 5
    capsys.readouterr()


def test_bad_input_is_one_sentence(tmp_path, capsys):
    for rows, problem in (
        ([{"prompt": "q"}], "no demonstration format has this shape"),
        ([row("x = 1"), row("x = 1", tests=3)], "rows.jsonl, line 2: 'tests' must be a list of texts"),
    ):
        assert data(write(tmp_path / "rows.jsonl", *rows), tmp_path / "out.jsonl", "--lint") == 1
        said = capsys.readouterr().err
        assert problem in said and "Traceback" not in said


@pytest.mark.needs("ruff")
def test_a_ruff_that_does_not_work_is_one_sentence(tmp_path, capsys, monkeypatch):
    require()
    rows, broken = write(tmp_path / "rows.jsonl", ROWS[0]), tmp_path / "broken" / "ruff"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    for program, problem in (
        ("raise SystemExit('no such option')", "--lint: ruff ends with 1: 'no such option'; mend its installation"),
        ("print('fine')", "--lint: ruff gave nothing of use (Expecting value"),
    ):
        (broken / "__main__.py").write_text(program)
        assert data(rows, tmp_path / "out.jsonl", "--lint") == 1
        said = capsys.readouterr().err
        assert problem in said and "Traceback" not in said
