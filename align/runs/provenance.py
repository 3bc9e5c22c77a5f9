"""What a stage was made with: versions, the commit of our code, hardware and the command, for its `summary.json`."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from align.runs.launch import command

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"align": "align-rlhf", "torch": "torch", "transformers": "transformers"}  # name -> distribution


def provenance(processes: int = 1) -> dict[str, Any]:
    """`align`, `torch` and `transformers` as installed, `commit` where it is known, `python`, `hardware`, `processes`
    and, of a run that a command started, `command`: as it was typed, secrets hidden, and nothing else of the machine.

    Args:
        processes: how many ranks there are.
    """
    made: dict[str, Any] = {}
    for name, distribution in PACKAGES.items():
        with suppress(metadata.PackageNotFoundError):  # our code runs from a folder, too
            made[name] = metadata.version(distribution)
    made |= {"commit": commit(), "python": platform.python_version(), "hardware": hardware(), "processes": processes}
    return {name: value for name, value in (made | {"command": command()}).items() if value}


@cache
def commit() -> str:
    """Twelve digits of the commit that our code was checked out at, `-dirty` where files of it are changed; empty where
    the code is no checkout, or git is not there."""
    if not (ROOT / ".git").exists():
        return ""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def hardware() -> str:
    """The accelerators of this machine that the program sees (`2 × NVIDIA H200`), else its processor's threads."""
    import torch

    if torch.cuda.is_available():
        names = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return ", ".join(f"{count} × {name}" for name, count in names.items())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU ({platform.machine()}), {cores} cores"
