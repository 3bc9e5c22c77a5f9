"""Whether code can be run in a sandbox here, and behind which walls."""

from __future__ import annotations

from functools import cache

import pytest

from reward.protocol import RewardError
from reward.sandbox.start import Budget, Job, run_all

NOTHING = Job(
    {"code": "", "prefix": "", "entry_point": "", "run": True},
    {"check": "", "function": "", "asserts": [], "pairs": [], "helpers": [], "setup": "", "prefix": "", "stop": True},
)
BUDGET = {"isolation": "best"}


@cache
def problem(isolation: str) -> str:
    """Why there is no sandbox; empty where there is one."""
    try:
        run_all([NOTHING], Budget(isolation=isolation), "try")
    except RewardError as error:
        return str(error)
    return ""


def require(isolation: str = "best") -> None:
    """Skip the test where there is no such sandbox."""
    if problem(isolation):
        pytest.skip(problem(isolation))
