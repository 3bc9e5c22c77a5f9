"""What a test needs beyond `make install` it says by a marker, and is skipped with the reason where that is missing."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from importlib.metadata import version
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

from align.report.build import build_report

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")
FSYNC = os.fsync
imported = 0


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing that is imported is garbage, and looking for some in it is a fourth of collecting."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    leave_out_what_was_imported()


def pytest_runtest_teardown() -> None:
    leave_out_what_was_imported()


def leave_out_what_was_imported() -> None:
    """What was imported stays, so that the collections of the tests (several a training) need not look at it. Much is
    imported by the first test that needs it; a few modules are not worth a collection of their own."""
    global imported
    if len(sys.modules) > imported + 100:
        gc.collect()
        gc.freeze()
        imported = len(sys.modules)


@pytest.fixture(autouse=True, scope="module")
def left_out_again() -> Iterator[None]:
    """A file that starts vLLM in this process lets go of what was left out, and every later collection would see it:
    two seconds a training."""
    yield
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else libraries complain of leaks at the end


@pytest.fixture(autouse=True, scope="module")
def a_precision_of_its_own() -> Iterator[None]:
    """The mixed precision of one file's trainings, which accelerate keeps for the process, is not that of the next."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()


@pytest.fixture(autouse=True, scope="module")
def no_report() -> Iterator[None]:
    """A stage draws no report, unless a test asks for it (`report`): that costs more than a tiny stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align.report.build.build_report", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def report(no_report: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align.report.build.build_report", build_report)
        yield


@pytest.fixture(autouse=True, scope="module")
def no_sync() -> Iterator[None]:
    """Nobody waits for the disk (several milliseconds a file), unless a test asks for it (`synced`): a killed process
    loses nothing of what it wrote, a machine without power does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def synced(no_sync: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", FSYNC)
        yield


def _numbers(release: str) -> list[int]:
    return [int(part) for part in release.split(".")[:2]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        (module,) = marker.args
        if find_spec(module) is None:
            pytest.skip(f"needs {module}: make install-full")
    for marker in item.iter_markers("since"):
        wanted, found = marker.args[0], version("transformers")
        if _numbers(found) < _numbers(wanted):
            pytest.skip(f"transformers {found} does not do it, {wanted} does")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
