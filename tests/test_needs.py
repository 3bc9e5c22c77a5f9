"""A test says by one marker which extra it needs."""

import subprocess
import sys

import pytest

from tests.commands import ROOT

TESTS = """
import pytest

@pytest.mark.needs("no_such_package")
def test_one(): raise AssertionError("it ran")

@pytest.mark.parametrize("at", [1, pytest.param(2, marks=pytest.mark.needs("no_such_package"))])
def test_two(at): assert at == 1

@pytest.mark.needs("pytest")
def test_three(): pass
"""


@pytest.mark.slow
def test_what_is_missing_is_the_reason_why_a_test_is_skipped(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    needs(module):\n    gpu:\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    assert "SKIPPED [2]" in done.stdout and "needs no_such_package: make install-full" in done.stdout
    assert "2 passed, 2 skipped" in done.stdout


def test_no_test_looks_for_a_package_in_another_way():
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "test_needs.py"]
    assert not [path for path in files if "importorskip" in path.read_text(encoding="utf-8")]
