"""`make gpu-check`: no part stops the next, whatever becomes of it; and on a CPU what can be there is well."""

import importlib.util
import json
import sys

import pytest

from tests.commands import INSTALLED, ROOT, run

FOLDER = ROOT / "examples/gpu"
PART = """
import os, time
from check import Skip

def well(here): return {"figure": 1.23456}
def wrong(here): raise ValueError("no | such thing")
def dies(here): os._exit(3)
def absent(here): raise Skip("not here")
def hangs(here): time.sleep(60)

CASES = {work.__name__: work for work in (well, wrong, dies, absent, hangs)} | {"never": well}
"""


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location("check", FOLDER / "check.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "check", module)
        spec.loader.exec_module(module)
        yield module


def test_a_part_that_fails_dies_or_hangs_stops_nothing_else(check, tmp_path, monkeypatch):
    (tmp_path / "made_up.py").write_text(PART)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = tmp_path / "rows.jsonl"
    check.guard_part("made_up", rows, 4.0, True, lambda: None)
    found = {row["case"]: (row["status"], row.get("why")) for row in check.read(rows)}
    assert found == {
        "well": ("ok", None),
        "wrong": ("failed", "ValueError: no | such thing"),
        "dies": ("failed", "its process ended (3)"),
        "absent": ("skipped", "not here"),
        "hangs": ("cut", "the part's 4 s were over"),
    }
    assert "| made_up | well | ok | 0.0 | figure 1.235 |" in check.table(check.read(rows)).splitlines()


def test_every_part_is_a_file_of_cases(check):
    assert all("\nCASES = " in (FOLDER / f"{name}.py").read_text(encoding="utf-8") for name in check.PARTS)
    assert sum(check.PARTS.values()) <= 15 * 60


@pytest.mark.slow  # every kind of stage, tiny
def test_a_dry_run_is_well(tmp_path):
    words = ("--dry", "--seconds", "1700", "--out", tmp_path)
    done = run(sys.executable, FOLDER / "check.py", *words, env=INSTALLED, timeout=1800)
    found = json.loads((tmp_path / "results.json").read_text())
    assert done.returncode == 0, (done.stdout, [(file, file.read_text()[-3000:]) for file in tmp_path.glob("*.log")])
    assert {row["part"] for row in found} == {"environment", "smoke", "sharing", "engines", "memory", "speed"}
    assert {row["status"] for row in found} == {"ok", "skipped"}
    assert all(row["why"] for row in found if row["status"] == "skipped")
